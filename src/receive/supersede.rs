//! A name that a session holds, and an offer of the same sender for it.

use std::time::Duration;

use dwcp_core::net::IncomingOffer;
use dwcp_core::wire::TransferId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::places::Stay;

/// A session answers as soon as it has done what waits in its queue.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// So long after its begin a session may not have heard that its connection was lost meanwhile: it is asked again.
const YOUNG: Duration = Duration::from_secs(1);
const ASKED_AGAIN: Duration = Duration::from_millis(100);

/// Wants to know whether a session ends for somebody else.
pub(super) type Question = oneshot::Sender<bool>;

/// The way to ask a session for its place.
#[derive(Clone, Debug)]
pub(super) struct Way {
    questions: mpsc::Sender<Question>,
    began: Instant,
}

/// What became of a question.
pub(super) struct Asked {
    /// Who was asked.
    pub(super) transfer: TransferId,
    pub(super) stay: Stay,
    /// For whom.
    pub(super) incoming: IncomingOffer,
    pub(super) ends: bool,
}

impl Way {
    /// With where its questions come.
    pub(super) fn to_session() -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(1);
        (Self { questions, began: Instant::now() }, asked)
    }

    /// Asks the session of a transfer in a stay, for an offer.
    pub(super) async fn ask(self, (transfer, stay): (TransferId, Stay), incoming: IncomingOffer) -> Asked {
        let mut ends = self.ends().await;
        while !ends && self.began.elapsed() < YOUNG {
            sleep(ASKED_AGAIN).await;
            ends = self.ends().await;
        }
        Asked { transfer, stay, incoming, ends }
    }

    async fn ends(&self) -> bool {
        let asking = async {
            let (ends, answer) = oneshot::channel();
            // One that is over does not answer.
            self.questions.send(ends).await.is_err() || answer.await.unwrap_or(true)
        };
        timeout(ANSWER_LIMIT, asking).await.unwrap_or(false)
    }
}
