//! The client: the only witness. It writes numbered records all the while, logs every
//! acknowledgement, and at the end reads every key. What is lost is decided by its log alone.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::clock::now;
use super::control::Counters;
use super::entry::{ENTRY_BYTES, Entry, Random};
use super::message::{ClientStart, Event, Order, Verified, orders, report};
use super::request::{ACK_BYTES, Logged, Request, acknowledges};

pub(super) fn run() -> anyhow::Result<()> {
    let (start, orders) = orders::<ClientStart>()?;
    let mut client = Client::new(&start)?;
    report(&Event::Ready { address: None });
    client.fill()?;
    client.write_on(start.write_rate, &orders)?;
    let verified = client.verify()?;
    report(&Event::Verified(verified));
    // The command closes our input when it has read the verdict.
    while orders.recv().is_ok() {}
    Ok(())
}

#[derive(Debug)]
struct Client {
    link: Link,
    log: Log,
    sequence: u64,
    /// Acknowledged since the fill.
    written: u64,
    writing_for: Duration,
    longest_gap: Duration,
    mark: Mark,
}

/// Since somebody last asked.
#[derive(Debug, Default)]
struct Mark {
    written: u64,
    gap: Duration,
}

/// Requests that are sent before their replies are read.
const BATCH: u64 = 256;
/// How often progress is told.
const REPORT_EVERY: Duration = Duration::from_millis(100);

impl Client {
    fn new(start: &ClientStart) -> anyhow::Result<Self> {
        Ok(Self {
            link: Link { stores: start.stores.clone(), stream: None },
            log: Log::create(&start.log, start.keys)?,
            sequence: 0,
            written: 0,
            writing_for: Duration::ZERO,
            longest_gap: Duration::ZERO,
            mark: Mark::default(),
        })
    }

    /// Writes every key once.
    fn fill(&mut self) -> anyhow::Result<()> {
        let keys = self.log.keys();
        let mut told = now();
        let mut next = 1;
        while next <= keys {
            let end = (next + BATCH).min(keys + 1);
            self.put(next..end)?;
            next = end;
            if told.elapsed() >= REPORT_EVERY {
                told = now();
                report(&Event::Filling { done: next - 1, of: keys });
            }
        }
        report(&Event::Filling { done: keys, of: keys });
        Ok(())
    }

    /// Writes at this rate until it is told to verify. What the guest could not take while it stood
    /// still is written afterwards, in full batches.
    fn write_on(&mut self, rate: u64, orders: &Receiver<Order>) -> anyhow::Result<()> {
        let mut random = Random(self.log.keys());
        let began = now();
        let (mut told, mut acknowledged) = (began, began);
        let mut forgiven = 0;
        loop {
            match orders.recv_timeout(TICK) {
                Ok(Order::Verify) => break,
                Ok(Order::Mark) => self.mark(acknowledged.elapsed()),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the command is gone"),
            }
            let due = writes_due(rate, began.elapsed()).saturating_sub(self.written + forgiven);
            let batch = due.min(BATCH);
            // A machine that cannot keep the rate must not be chased for ever after.
            forgiven += due.saturating_sub(rate.max(BATCH));
            if batch > 0 {
                let keys: Vec<u64> = (0..batch).map(|_| self.choose(&mut random)).collect();
                self.put(keys)?;
                self.written += batch;
                self.waited(acknowledged.elapsed());
                acknowledged = now();
            }
            if told.elapsed() >= REPORT_EVERY {
                told = now();
                report(&Event::Writing { acknowledged: self.written });
            }
        }
        self.writing_for = began.elapsed();
        Ok(())
    }

    fn waited(&mut self, gap: Duration) {
        self.longest_gap = self.longest_gap.max(gap);
        self.mark.gap = self.mark.gap.max(gap);
    }

    /// Tells what came since the last mark; `waiting`: since the last acknowledgement.
    fn mark(&mut self, waiting: Duration) {
        let Mark { written, gap } =
            std::mem::replace(&mut self.mark, Mark { written: self.written, gap: Duration::ZERO });
        let gap_ms = u64::try_from(gap.max(waiting).as_millis()).unwrap_or(u64::MAX);
        report(&Event::Marked { writes: self.written - written, gap_ms });
    }

    /// Half of all writes go to a hot eighth of the keys, as in most databases.
    fn choose(&self, random: &mut Random) -> u64 {
        let keys = self.log.keys();
        let range = if random.next().is_multiple_of(2) { keys / 8 } else { keys };
        random.next() % range.max(1) + 1
    }

    /// Puts one new record under each key and logs the acknowledgements.
    fn put(&mut self, keys: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
        let entries: Vec<Entry> = keys
            .into_iter()
            .map(|key| {
                self.sequence += 1;
                Entry::new(key, self.sequence)
            })
            .collect();
        let mut requests = Vec::with_capacity(entries.len() * (1 + ENTRY_BYTES));
        for &entry in &entries {
            Request::Put(entry).append_to(&mut requests);
        }
        let mut acks = vec![0; entries.len() * ACK_BYTES];
        self.link.ask(&requests, &mut acks)?;
        for (entry, ack) in entries.iter().zip(acks.as_chunks::<ACK_BYTES>().0) {
            if !acknowledges(ack, entry) {
                bail!("the store acknowledges another write than it was asked for");
            }
            self.log.acknowledged(entry, ack)?;
        }
        Ok(())
    }

    /// Reads every key and compares it with the log.
    fn verify(&mut self) -> anyhow::Result<Verified> {
        self.log.flush()?;
        let keys = self.log.keys();
        let mut verified = Verified { keys, writes: self.log.writes, ..Verified::default() };
        let mut told = now();
        let mut next = 1;
        while next <= keys {
            let end = (next + BATCH).min(keys + 1);
            self.verify_some(next..end, &mut verified)?;
            next = end;
            if told.elapsed() >= REPORT_EVERY {
                told = now();
                report(&Event::Verifying { done: next - 1, of: keys });
            }
        }
        report(&Event::Verifying { done: keys, of: keys });
        verified.counters_kept = self.count()?.sequence == self.sequence;
        verified.gap_ms = u64::try_from(self.longest_gap.as_millis()).unwrap_or(u64::MAX);
        let millis = u64::try_from(self.writing_for.as_millis()).unwrap_or(u64::MAX).max(1);
        verified.rate = self.written.saturating_mul(1000) / millis;
        Ok(verified)
    }

    fn verify_some(&mut self, keys: std::ops::Range<u64>, verified: &mut Verified) -> anyhow::Result<()> {
        let mut requests = Vec::new();
        for key in keys.clone() {
            Request::Get(key).append_to(&mut requests);
        }
        let count = usize::try_from(keys.end - keys.start)?;
        let mut replies = vec![0; count * ENTRY_BYTES];
        self.link.ask(&requests, &mut replies)?;
        for (key, reply) in keys.zip(replies.as_chunks::<ENTRY_BYTES>().0) {
            let logged = self.log.of(key);
            if let Some(loss) = loss(key, logged, reply) {
                verified.lost_writes += 1;
                verified.example.get_or_insert(loss);
            }
        }
        Ok(())
    }

    fn count(&mut self) -> anyhow::Result<Counters> {
        let mut request = Vec::new();
        Request::Count.append_to(&mut request);
        let mut reply = [0; 16];
        self.link.ask(&request, &mut reply)?;
        Counters::from_bytes(&reply).context("the store's counters are cut short")
    }
}

/// A tick of the writer; a batch is due at most this often.
const TICK: Duration = Duration::from_millis(1);

fn writes_due(rate: u64, elapsed: Duration) -> u64 {
    let due = u128::from(rate) * elapsed.as_micros() / 1_000_000;
    u64::try_from(due).unwrap_or(u64::MAX)
}

/// What is wrong with what the store holds, if anything is.
fn loss(key: u64, logged: Logged, reply: &[u8; ENTRY_BYTES]) -> Option<String> {
    let Some(entry) = Entry::from_bytes(reply).filter(|entry| entry.key == key) else {
        return Some(format!("key {key}: write {} was acknowledged, and the key is gone", logged.sequence));
    };
    if !entry.is_whole() {
        return Some(format!("key {key}: the record is torn"));
    }
    (entry.sequence != logged.sequence || entry.digest != logged.digest).then(|| {
        format!("key {key}: write {} was acknowledged, and the store holds write {}", logged.sequence, entry.sequence)
    })
}

/// A connection to whichever store answers.
#[derive(Debug)]
struct Link {
    stores: Vec<PathBuf>,
    stream: Option<UnixStream>,
}

/// A store that says nothing for this long may have moved: ask the other one. Longer than a
/// switch-over within its budget takes; a guest that has left closes the connection at once.
const SILENCE: Duration = Duration::from_millis(800);
/// No store answers: the demo has failed.
const GIVE_UP: Duration = Duration::from_secs(20);

impl Link {
    /// Sends requests and reads all replies, from the start again at the other store if need be.
    /// Puts may be repeated: the store keeps the highest number.
    fn ask(&mut self, requests: &[u8], replies: &mut [u8]) -> anyhow::Result<()> {
        let began = now();
        while self.try_ask(requests, replies).is_err() {
            self.turn(began)?;
        }
        Ok(())
    }

    fn try_ask(&mut self, requests: &[u8], replies: &mut [u8]) -> std::io::Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.stores.first().map_or_else(no_store, connect)?),
        };
        stream.write_all(requests)?;
        stream.read_exact(replies)
    }

    /// The other store is next.
    fn turn(&mut self, began: Instant) -> anyhow::Result<()> {
        if began.elapsed() > GIVE_UP {
            bail!("no store has answered for {} s", GIVE_UP.as_secs());
        }
        self.stream = None;
        self.stores.rotate_left(1);
        // Both may refuse for a moment; this thread has nothing else to do.
        std::thread::park_timeout(Duration::from_millis(1));
        Ok(())
    }
}

fn no_store() -> std::io::Result<UnixStream> {
    Err(std::io::ErrorKind::NotFound.into())
}

fn connect(store: &PathBuf) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(store)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Every acknowledgement, in a file; the last one of each key, in memory.
#[derive(Debug)]
struct Log {
    file: BufWriter<File>,
    last: Vec<Logged>,
    writes: u64,
}

impl Log {
    fn create(path: &std::path::Path, keys: u64) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write the log {}", path.display()))?;
        let last = vec![Logged::default(); usize::try_from(keys)?];
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), last, writes: 0 })
    }

    fn keys(&self) -> u64 {
        u64::try_from(self.last.len()).unwrap_or(u64::MAX)
    }

    fn acknowledged(&mut self, entry: &Entry, ack: &[u8; ACK_BYTES]) -> anyhow::Result<()> {
        self.file.write_all(ack).context("cannot write the client's log")?;
        self.writes += 1;
        let place = index(entry.key).and_then(|at| self.last.get_mut(at)).context("a key outside the log")?;
        // Of two writes to one key in a batch the later one stands.
        if entry.sequence > place.sequence {
            *place = Logged { sequence: entry.sequence, digest: entry.digest };
        }
        Ok(())
    }

    fn of(&self, key: u64) -> Logged {
        index(key).and_then(|at| self.last.get(at)).copied().unwrap_or_default()
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.file.flush().context("cannot write the client's log")
    }
}

/// Keys count from 1.
fn index(key: u64) -> Option<usize> {
    usize::try_from(key.checked_sub(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_record_a_torn_one_and_none_are_losses() {
        let entry = Entry::new(7, 3);
        let logged = Logged { sequence: 3, digest: entry.digest };
        assert_eq!(loss(7, logged, &entry.to_bytes()), None);
        assert!(loss(7, logged, &Entry::new(7, 2).to_bytes()).unwrap().contains("holds write 2"));
        assert!(loss(7, logged, &[0; ENTRY_BYTES]).unwrap().contains("gone"));
        let mut torn = entry.to_bytes();
        torn[200] ^= 1;
        assert!(loss(7, logged, &torn).unwrap().contains("torn"));
    }
}
