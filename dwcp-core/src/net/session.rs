use std::num::NonZeroU64;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::driver::{Event, supersede};
use crate::session::{Input, Outcome, Owner, Progress, SessionError};
use crate::wire::TransferId;

/// A transfer in progress, at either end. Dropping it cancels the transfer; after GIVE_UP it only
/// stops waiting.
#[derive(Debug)]
pub struct Session {
    transfer: TransferId,
    events: mpsc::Sender<Event>,
    progress: watch::Receiver<Progress>,
    driver: JoinHandle<Outcome>,
    over: bool,
}

impl Session {
    pub(super) fn new(
        transfer: TransferId,
        events: mpsc::Sender<Event>,
        progress: watch::Receiver<Progress>,
        driver: JoinHandle<Outcome>,
    ) -> Self {
        Self { transfer, events, progress, driver, over: false }
    }

    /// The transfer's name for its whole life.
    pub fn transfer(&self) -> TransferId {
        self.transfer
    }

    /// Typed statistics, at most every 50 ms, and once more at the end.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Ends the transfer; the guest stays where it is. After GIVE_UP it only ends the waiting, and
    /// the outcome is in doubt.
    pub fn cancel(&self) {
        self.tell(Input::Cancel);
    }

    /// Ends the transfer because this node shuts down, unless it is being switched over: that goes on, until it is
    /// done or [`Session::cancel`] ends it. The peer is told that it may come back; what a sink holds durably stays.
    pub fn retire(&self) {
        self.tell(Input::Retire);
    }

    /// At a sink: ends the session if its connection is lost, or silent for 10 s, and nothing was promised or all is
    /// done, because its source has come back with another. Returns whether it ends.
    ///
    /// Cancel safe: no. Dropped before it returns, the session may end all the same, and its outcome says so.
    pub async fn supersede(&self) -> bool {
        supersede(&self.events, false).await
    }

    /// Limits all lanes together to so many bytes per second, from now on.
    pub fn set_bandwidth(&self, bytes_per_second: Option<NonZeroU64>) {
        self.tell(Input::Bandwidth(bytes_per_second));
    }

    fn tell(&self, input: Input) {
        let events = self.events.clone();
        if let Err(mpsc::error::TrySendError::Full(event)) = events.try_send(Event::Input(input)) {
            tokio::spawn(async move { events.send(event).await });
        }
    }

    /// The outcome of a session whose outcome was told.
    pub(crate) fn told() -> Outcome {
        Outcome { owner: Owner::InDoubt, error: Some(SessionError::Cancelled) }
    }

    /// Waits for the end; the outcome is told once, and later calls say in doubt.
    ///
    /// Cancel safe: dropped, the session goes on, and the next call waits for the same end.
    pub async fn outcome(&mut self) -> Outcome {
        if self.over {
            return Self::told();
        }
        let outcome = (&mut self.driver).await;
        self.over = true;
        outcome.unwrap_or_else(|error| {
            let what = crate::guest::GuestError::Other(format!("the session's task died: {error}"));
            Outcome { owner: Owner::InDoubt, error: Some(what.into()) }
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.over && tokio::runtime::Handle::try_current().is_ok() {
            self.cancel();
        }
    }
}
