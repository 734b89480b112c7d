//! Named places where a process dies at once, as by a power cut: no destructor, no last word, no flush.
//!
//! `DWCP_FAILPOINT=name[:nth][@file]` chooses one: the process aborts when it comes there for the nth time (1 without a
//! number). With a file it does so only if it can make that file, so that a process that is started again with the same
//! environment lives. `DWCP_HOLD=name@pipe` holds the first thread that comes there until somebody has opened the named
//! pipe for writing and closed it: what takes long on a disk, as long as a test wants. Some points are only for that.
//!
//! Compiled with the feature `planted-bugs` only: in a product the macro is nothing, and no name of a point is in its
//! binary. `tests/failpoints.rs` kills a process at each of [`NAMES`] and looks what becomes of the image.

/// Dies here if this place was chosen: by its name, or by what it is about.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "planted-bugs")]
        $crate::failpoint::hit($name)
    };
    ($about:ident $(, $what:expr)*) => {
        #[cfg(feature = "planted-bugs")]
        $crate::failpoint::$about($($what),*)
    };
}

#[cfg(feature = "planted-bugs")]
pub use self::armed::{NAMES, hit};
#[cfg(feature = "planted-bugs")]
pub(crate) use self::armed::{chore_begins, chore_ended, performs, received, sends, sent, waits, wound_up};

#[cfg(feature = "planted-bugs")]
mod armed {
    use std::cell::Cell;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use crate::session::{Output, Standing};
    use crate::wire::{Frame, FrameType};

    /// All that a transfer of an image comes by. The word before the first point says at which end.
    #[rustfmt::skip]
    pub const NAMES: &[&str] = &[
        // Connections.
        "source.control.connected", "source.lane.connected", "sink.accepted", "sink.authenticated", "sink.seated",
        // Frames: about to be sent, sent, received and not yet acted upon.
        "source.sends.HELLO", "source.sent.HELLO", "sink.received.HELLO",
        "sink.sends.HELLO_ACK", "sink.sent.HELLO_ACK", "source.received.HELLO_ACK",
        "source.sends.BIND", "source.sent.BIND", "sink.received.BIND",
        "source.sends.JOIN", "source.sent.JOIN", "sink.received.JOIN",
        "sink.sends.JOINED", "sink.sent.JOINED", "source.received.JOINED",
        "source.sends.OFFER", "source.sent.OFFER", "sink.received.OFFER",
        "sink.sends.HAVE", "sink.sent.HAVE", "source.received.HAVE",
        "sink.sends.ACCEPT", "sink.sent.ACCEPT", "source.received.ACCEPT",
        "source.sends.PING", "source.sent.PING", "sink.received.PING",
        "sink.sends.PONG", "sink.sent.PONG", "source.received.PONG",
        "sink.sends.ACK", "sink.sent.ACK", "source.received.ACK",
        "sink.sends.CREDIT", "sink.sent.CREDIT", "source.received.CREDIT",
        "source.sends.PAUSE", "source.sent.PAUSE", "sink.received.PAUSE",
        "sink.sends.READY", "sink.sent.READY", "source.received.READY",
        "source.sends.RUN", "source.sent.RUN", "sink.received.RUN",
        "sink.sends.RUNNING", "sink.sent.RUNNING", "source.received.RUNNING",
        // Pages.
        "source.lane.printed", "source.lane.reported", "source.lane.written",
        "sink.lane.read", "sink.lane.verified", "sink.lane.written", "sink.lane.applied",
        // What the machines ask their drivers for.
        "source.performs.open-lane", "source.performs.send", "source.performs.redial", "source.performs.finished",
        "sink.performs.admit-lane", "sink.performs.grant", "sink.performs.finished",
        // Chores of guest and records.
        "source.chore.harvest.before", "source.chore.harvest.after",
        "source.chore.recall.before", "source.chore.recall.after",
        "source.chore.pause.before", "source.chore.pause.after",
        "source.chore.resume.before", "source.chore.resume.after",
        "source.chore.save-devices.before", "source.chore.save-devices.after",
        "source.chore.persist-gave-up.before", "source.chore.persist-gave-up.after",
        "source.chore.forget.before", "source.chore.forget.after",
        "sink.chore.stage.before", "sink.chore.stage.after",
        "sink.chore.persist-ready.before", "sink.chore.persist-ready.after",
        "sink.chore.run.before", "sink.chore.run.after",
        "sink.chore.persist-ran.before", "sink.chore.persist-ran.after",
        "sink.chore.park.before", "sink.chore.park.after",
        // An image on the sink's disk.
        "sink.image.stages", "sink.image.named", "sink.image.durable",
        "sink.journal.data-synced", "sink.journal.written", "sink.journal.synced",
        // What was promised is taken back for its own source.
        "sink.retracts", "sink.retracted",
        // The session's end.
        "source.wound-up", "sink.wound-up",
    ];

    /// What the environment chose.
    struct Chosen {
        name: String,
        nth: u64,
        file: Option<String>,
        seen: AtomicU64,
        /// A frame that dies once it is sent is on its way.
        leaving: AtomicBool,
    }

    fn chosen() -> Option<&'static Chosen> {
        static CHOSEN: OnceLock<Option<Chosen>> = OnceLock::new();
        let read = || {
            let text = std::env::var("DWCP_FAILPOINT").ok()?;
            let (place, file) =
                text.split_once('@').map_or((text.as_str(), None), |(place, file)| (place, Some(file.to_owned())));
            let (name, nth) = place.split_once(':').unwrap_or((place, "1"));
            let (name, nth) = (name.to_owned(), nth.parse().ok()?);
            Some(Chosen { name, nth, file, seen: AtomicU64::new(0), leaving: AtomicBool::new(false) })
        };
        CHOSEN.get_or_init(read).as_ref()
    }

    impl Chosen {
        /// Whether this place is the one, for the nth time.
        fn is(&self, name: &str) -> bool {
            self.name == name && self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.nth
        }

        fn die(&self) {
            let first = |file: &String| std::fs::File::options().write(true).create_new(true).open(file).is_ok();
            if self.file.as_ref().is_none_or(first) {
                std::process::abort();
            }
        }
    }

    /// Where to wait, and for which pipe.
    struct Held {
        name: String,
        pipe: String,
        done: AtomicBool,
    }

    fn held() -> Option<&'static Held> {
        static HELD: OnceLock<Option<Held>> = OnceLock::new();
        let read = || {
            let text = std::env::var("DWCP_HOLD").ok()?;
            let (name, pipe) = text.split_once('@')?;
            Some(Held { name: name.to_owned(), pipe: pipe.to_owned(), done: AtomicBool::new(false) })
        };
        HELD.get_or_init(read).as_ref()
    }

    /// Waits there, if this place was chosen for that. Nobody dies at one that only waits.
    pub(crate) fn waits(name: &str) {
        if let Some(held) = held().filter(|held| held.name == name && !held.done.swap(true, Ordering::Relaxed)) {
            let _ = std::fs::read(&held.pipe);
        }
    }

    /// Dies if this place was chosen, or waits there.
    pub fn hit(name: &str) {
        waits(name);
        if let Some(chosen) = chosen().filter(|chosen| chosen.is(name)) {
            chosen.die();
        }
    }

    /// A frame is about to be written.
    pub(crate) fn sends(frame: &Frame) {
        let Some(chosen) = chosen() else { return };
        let frame = frame.frame_type();
        let (end, word) = (sender(frame), word(frame));
        if chosen.is(&format!("{end}.sends.{word}")) {
            chosen.die();
        }
        if chosen.is(&format!("{end}.sent.{word}")) {
            chosen.leaving.store(true, Ordering::Relaxed);
        }
    }

    /// What was about to be written is.
    pub(crate) fn sent() {
        if let Some(chosen) = chosen().filter(|chosen| chosen.leaving.swap(false, Ordering::Relaxed)) {
            chosen.die();
        }
    }

    /// A frame has come, and nobody has acted upon it.
    pub(crate) fn received(frame: &Frame) {
        if chosen().is_none() {
            return;
        }
        let frame = frame.frame_type();
        let end = if sender(frame) == "source" { "sink" } else { "source" };
        hit(&format!("{end}.received.{}", word(frame)));
    }

    /// Who sends it in a transfer that nothing disturbs.
    fn sender(frame: FrameType) -> &'static str {
        match frame {
            FrameType::Hello
            | FrameType::Bind
            | FrameType::Join
            | FrameType::Offer
            | FrameType::Extent
            | FrameType::Bury
            | FrameType::Pause
            | FrameType::DeviceState
            | FrameType::Run
            | FrameType::Ping => "source",
            _ => "sink",
        }
    }

    /// `HELLO_ACK`, as the specification writes it.
    fn word(frame: FrameType) -> String {
        let mut word = String::new();
        for letter in format!("{frame:?}").chars() {
            if letter.is_ascii_uppercase() && !word.is_empty() {
                word.push('_');
            }
            word.push(letter.to_ascii_uppercase());
        }
        word
    }

    /// A machine's wish is about to be done; chores have points of their own. `end`: of this machine.
    pub(crate) fn performs(output: &Output, end: &str) {
        let wish = match output {
            Output::OpenLane(_) => "open-lane",
            Output::Send(_) => "send",
            Output::Redial { .. } => "redial",
            Output::AdmitLane { .. } => "admit-lane",
            Output::Grant { .. } => "grant",
            Output::Finished(_) => "finished",
            _ => return,
        };
        if chosen().is_some() {
            hit(&format!("{end}.performs.{wish}"));
        }
    }

    /// A session's workers, connection and chores have ended, and nobody was told.
    pub(crate) fn wound_up(end: &str) {
        if chosen().is_some() {
            hit(&format!("{end}.wound-up"));
        }
    }

    thread_local! {
        /// What the chores thread does just now.
        static CHORE: Cell<&'static str> = const { Cell::new("") };
    }

    /// A chore begins on this thread.
    pub(crate) fn chore_begins(chore: &Output) {
        let name = match chore {
            Output::Harvest => "source.chore.harvest",
            Output::Recall { .. } => "source.chore.recall",
            Output::Pause => "source.chore.pause",
            Output::Resume => "source.chore.resume",
            Output::SaveDevices => "source.chore.save-devices",
            Output::Stage { .. } => "sink.chore.stage",
            Output::Run => "sink.chore.run",
            Output::Park => "sink.chore.park",
            Output::Discard => "sink.chore.discard",
            Output::Forget(_) => "source.chore.forget",
            Output::Persist(record) => match record.standing {
                Standing::GaveUp => "source.chore.persist-gave-up",
                Standing::Ready => "sink.chore.persist-ready",
                Standing::Ran => "sink.chore.persist-ran",
            },
            _ => "",
        };
        CHORE.set(name);
        hit(&format!("{name}.before"));
    }

    /// The chore that began on this thread is done, and nobody knows.
    pub(crate) fn chore_ended() {
        hit(&format!("{}.after", CHORE.get()));
    }
}
