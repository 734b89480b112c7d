//! How a node commands the guest it moves: one socket, one question at a time.
//!
//! ```text
//!   question  | command 1 | sequence 8 | operations 8 |      answer  | 1: done | sequence 8 | operations 8 |
//! ```
//!
//! Pages do not pass here: the node maps the arena.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// The guest's devices: what it holds outside its arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// The highest number written.
    pub(super) sequence: u64,
    /// Requests answered.
    pub(super) operations: u64,
}

const COUNTERS_BYTES: usize = 16;

impl Counters {
    pub(super) fn to_bytes(self) -> [u8; COUNTERS_BYTES] {
        let mut bytes = [0; COUNTERS_BYTES];
        let words = self.sequence.to_le_bytes().into_iter().chain(self.operations.to_le_bytes());
        for (place, byte) in bytes.iter_mut().zip(words) {
            *place = byte;
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (sequence, rest) = bytes.split_first_chunk::<8>()?;
        let operations = rest.first_chunk::<8>().filter(|_| rest.len() == 8)?;
        Some(Self { sequence: u64::from_le_bytes(*sequence), operations: u64::from_le_bytes(*operations) })
    }
}

/// What a guest can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Finish what is being answered, then stand still. The answer carries the counters.
    Pause,
    /// Serve, for the first time or again.
    Run,
    /// Take these counters over. Only a guest that has never run does.
    Load,
    /// The guest runs elsewhere: never answer again.
    Leave,
}

impl Command {
    const ALL: [(Self, u8); 4] = [(Self::Pause, b'P'), (Self::Run, b'R'), (Self::Load, b'L'), (Self::Leave, b'X')];

    fn byte(self) -> u8 {
        Self::ALL.iter().find(|(command, _)| *command == self).map_or(0, |(_, byte)| *byte)
    }
}

/// The node's end.
#[derive(Debug)]
pub(super) struct Control {
    stream: Mutex<UnixStream>,
}

/// A guest answers within a request of its client: if it takes this long, it is not there.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

impl Control {
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).context("the guest cannot be reached")?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream: Mutex::new(stream) })
    }

    pub(super) fn tell(&self, command: Command, counters: Counters) -> anyhow::Result<Counters> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut question = vec![command.byte()];
        question.extend(counters.to_bytes());
        let mut answer = [0; 1 + COUNTERS_BYTES];
        stream
            .write_all(&question)
            .and_then(|()| stream.read_exact(&mut answer))
            .context("the guest does not answer")?;
        let [done, counters @ ..] = answer;
        ensure!(done == 1, "the guest refuses to {command:?}");
        Counters::from_bytes(&counters).context("the guest's answer is cut short")
    }
}

/// The guest's end: the next question, or `None` when the node is gone.
pub(super) fn question(stream: &mut UnixStream) -> Option<(Command, Counters)> {
    let mut bytes = [0; 1 + COUNTERS_BYTES];
    stream.read_exact(&mut bytes).ok()?;
    let [byte, counters @ ..] = bytes;
    let (command, _) = Command::ALL.into_iter().find(|(_, known)| *known == byte)?;
    Some((command, Counters::from_bytes(&counters)?))
}

/// The guest's answer; a node that is gone needs none.
pub(super) fn answer(stream: &mut UnixStream, done: Option<Counters>) {
    let mut bytes = vec![u8::from(done.is_some())];
    bytes.extend(done.unwrap_or_default().to_bytes());
    let _ = stream.write_all(&bytes);
}
