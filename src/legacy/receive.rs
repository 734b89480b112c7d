use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_core::guest::{ImageFolder, ImageStaging};
use dwcp_core::net::{Endpoint, Transfer, TurnedAway};
use dwcp_core::wire::{GuestKind, Name, TransferId};
use dwcp_core::{Guest, GuestError, Layout};
use dwcp_v1_compat::message::{Deadlines, Received, Shape};
use dwcp_v1_compat::net::{
    Form, LegacyArrival, LegacyListener, LegacyPort, LegacySession, ReceiveOptions, SpokenV3, Tally, TransferError,
};
use dwcp_v1_compat::wire::Framing;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

use super::SPOKEN;
use super::advice;
use super::exit::failure;
use super::show::{Unshown, Visible, show};
use crate::cli::ReceiveArgs;
use crate::exit::{Exit, Failure};
use crate::report::Report;
use crate::units;

/// The side of a receiver's port where version 1 comes in: one image, under one name, from one peer at a time.
pub(crate) struct Port {
    listener: LegacyListener,
    spoken: Arc<SpokenV3>,
    /// For its counters.
    endpoint: Endpoint,
    folder: ImageFolder,
    dir: PathBuf,
    transfer: TransferId,
    name: Name,
    layout: Layout,
    form: Form,
    options: ReceiveOptions,
    running: Option<Running>,
    /// Who was told why it is refused while that runs: each of its connections would begin another transfer.
    told: BTreeSet<IpAddr>,
    /// No more is taken.
    stopping: bool,
    refused: u64,
    report: Report,
}

/// An image that comes.
struct Running {
    from: IpAddr,
    task: JoinHandle<Result<Received, Ending>>,
    /// Dropped to end it, unless all of it has come.
    wanted: Option<oneshot::Sender<()>>,
    /// It may have its name from now on.
    showing: Arc<AtomicBool>,
}

/// Why an image did not come.
enum Ending {
    /// There is no place for it.
    Refused(GuestError),
    Failed(TransferError),
    /// All of it came.
    Unshown(Unshown),
}

/// Where one goes.
struct Staging {
    folder: ImageFolder,
    name: Name,
    transfer: TransferId,
    layout: Layout,
}

#[derive(Serialize)]
struct Started<'a> {
    version: u16,
    name: &'a str,
    peer: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Ended<'a> {
    verdict: &'a str,
    version: u16,
    name: &'a str,
    peer: String,
    /// What is known of the bytes; null if they did not come.
    assurance: Option<String>,
    bytes_guest: u64,
    bytes_wire: Option<u64>,
    closed: Option<bool>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Refused<'a> {
    version: u16,
    name: &'a str,
    peer: String,
    error: &'a str,
}

/// How a transfer ended, as it is told.
struct End {
    exit: Exit,
    received: Option<Received>,
    error: Option<String>,
}

/// What came to the port, for whoever watches a rollout.
#[derive(Serialize)]
struct Counts {
    tls: u64,
    started: u64,
    joined: u64,
    held: u64,
    garbage: u64,
    silent: u64,
    too_many: u64,
    unclaimed: u64,
    clear_text: u64,
    downgrade_refused: u64,
    defects: u64,
    /// Defects by kind, and transfers by how they ended.
    defect_kinds: BTreeMap<&'static str, u64>,
    ended: BTreeMap<&'static str, u64>,
    bytes: u64,
    /// How often who spoke version 3 could not be written down.
    spoken_unwritten: u64,
    /// How often one of them was forgotten to make room for another.
    spoken_forgotten: u64,
}

impl Counts {
    /// Who was turned away here hears nothing but a hang-up: that must not be the end of it.
    fn warn(&self, report: &Report) {
        let counted = [
            (self.clear_text, "from addresses that --allow-plaintext-v1 does not name"),
            (self.downgrade_refused, "from addresses that spoke version 3"),
            (
                self.garbage,
                "of bytes that are neither TLS nor version 1 as --v1 has it (is the peer set to the other framing, --v1 mst8 or amst16?)",
            ),
            (self.silent, "that said nothing"),
            (self.too_many, "too many at a time"),
        ];
        let told: Vec<_> =
            counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if !told.is_empty() {
            report.warn(&format!("connections that version 1's port turned away: {}", told.join("; ")));
        }
    }
}

impl Port {
    /// Where version 1 is wanted: an endpoint that lets it in, and what takes it.
    pub(crate) fn open(
        args: &ReceiveArgs,
        endpoint: Endpoint,
        folder: &ImageFolder,
        records: &Path,
        report: &Report,
    ) -> Result<(Endpoint, Option<Self>), Failure> {
        let legacy = &args.legacy.shared;
        let (Some(_), Some(name), Some(bytes)) = (legacy.v1, &args.legacy.v1_as, args.legacy.v1_size) else {
            return Ok((endpoint, None));
        };
        let layout = Layout::new(&[bytes])
            .map_err(|error| Failure::new(Exit::Usage, format!("--v1-size {bytes} is no size of an image: {error}")))?;
        let form = args.legacy.form()?;
        let spoken = SpokenV3::open(records.join(SPOKEN)).map_err(|error| failure(&error))?;
        let spoken = Arc::new(spoken);
        let (port, listener) = LegacyPort::new(legacy.policy()?, Arc::clone(&spoken));
        let endpoint = endpoint.with_openings(port);
        let options = ReceiveOptions {
            shape: match legacy.framing() {
                Framing::Mst8 => Shape::Mst8 { total: bytes, chunk_bytes: legacy.chunk_bytes() },
                Framing::Amst16 => Shape::Amst16 { most_bytes: u64::from(u32::MAX), most_chunk_bytes: 1 << 20 },
            },
            most_connections: 256,
            deadlines: Deadlines::default(),
            tally: Tally::default(),
        };
        let port = Self {
            listener,
            spoken,
            endpoint: endpoint.clone(),
            folder: folder.clone(),
            dir: args.dir.clone(),
            transfer: Transfer::new(name.clone(), GuestKind::Image).id,
            name: name.clone(),
            layout,
            form,
            options,
            running: None,
            told: BTreeSet::new(),
            stopping: false,
            refused: 0,
            report: report.clone(),
        };
        Ok((endpoint, Some(port)))
    }

    /// The name that is taken for what comes over version 1.
    pub(crate) fn name(&self) -> (TransferId, Name) {
        (self.transfer, self.name.clone())
    }

    /// Nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Takes what comes until one image has come, or has not. `elsewhere`: why there is no place for one that comes now.
    /// Cancel safe.
    pub(crate) async fn next(&mut self, elsewhere: Option<&str>) -> Exit {
        loop {
            tokio::select! {
                Some(arrival) = self.listener.accept(), if !self.stopping => self.begin(arrival, elsewhere),
                ended = over(&mut self.running) => if let Some(exit) = self.over(ended) {
                    return exit;
                },
            }
        }
    }

    fn begin(&mut self, arrival: LegacyArrival, elsewhere: Option<&str>) {
        let from = arrival.from();
        let another = "another version 1 transfer is under way, and both would have the same name";
        match self.running.as_ref().map(|_| another).or(elsewhere) {
            Some(_) if !self.told.insert(from) => return,
            Some(error) => return self.refuse(&from.to_string(), error),
            None => self.told.clear(),
        }
        let (name, layout) = (self.name.clone(), self.layout.clone());
        let staging = Staging { folder: self.folder.clone(), name, transfer: self.transfer, layout };
        let (form, options, report) = (self.form.clone(), self.options.clone(), self.report.clone());
        let (wanted, mut unwanted) = oneshot::channel();
        let showing = Arc::new(AtomicBool::new(false));
        let shows = Arc::clone(&showing);
        let taking = async move {
            let (name, bytes) = (staging.name.clone(), staging.layout.bytes());
            let staging = tokio::select! {
                staging = staging.make() => Arc::new(staging.map_err(Ending::Refused)?),
                _ = &mut unwanted => return Err(Ending::Failed(TransferError::Cancelled)),
            };
            report.event("started", &Started { version: 1, name: name.as_str(), peer: from.to_string(), bytes });
            let guest: Arc<dyn Guest> = Arc::<ImageStaging>::clone(&staging);
            let received = take(arrival.take(guest, form, options), unwanted).await.map_err(Ending::Failed)?;
            shows.store(true, Ordering::SeqCst);
            show(staging).await.map(|()| received).map_err(Ending::Unshown)
        };
        self.running = Some(Running { from, task: tokio::spawn(taking), wanted: Some(wanted), showing });
    }

    /// Takes nothing new, and ends what has not come whole: nobody could go on with it.
    pub(crate) fn retire(&mut self) {
        self.stopping = true;
        if let Some(running) = &mut self.running {
            running.wanted = None;
        }
    }

    /// Ends what is under way, whatever of it is done.
    pub(crate) fn cut(&mut self) {
        self.retire();
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }

    fn refuse(&mut self, from: &str, error: &str) {
        self.refused += 1;
        self.report.warn(&format!("refused version 1 from {from}: {error}"));
        let (name, peer) = (self.name.as_str(), from.to_owned());
        self.report.event("refused", &Refused { version: 1, name, peer, error });
    }

    /// What is under way is over. `None`: it never began.
    fn over(&mut self, ended: Result<Received, Ending>) -> Option<Exit> {
        let from = self.running.take().map_or_else(String::new, |running| running.from.to_string());
        let path = self.dir.join(self.name.as_str());
        let end = match ended {
            Ok(received) => {
                let (assurance, bytes) = (received.assurance, units::bytes(self.layout.bytes()));
                self.report.say(&format!(
                    "{} is here, {assurance}: {bytes} from {from} over version 1 in clear text; nobody proved who sent it",
                    path.display()
                ));
                End { exit: Exit::Ok, received: Some(received), error: None }
            }
            Err(Ending::Refused(error)) => {
                self.refuse(&from, &error.to_string());
                return None;
            }
            Err(Ending::Failed(error)) => {
                let exit = failure(&error).exit;
                let hint = advice::receiving(&error).map_or(String::new(), |hint| format!("{hint} "));
                self.trouble(&from, exit, &error, &format!("{hint}{}", Visible::No.told(&path)))
            }
            Err(Ending::Unshown(Unshown { error, visible })) => {
                self.trouble(&from, Exit::Failed, &error, &visible.told(&path))
            }
        };
        let exit = end.exit;
        self.tell(from, end);
        Some(exit)
    }

    fn trouble(&self, from: &str, exit: Exit, error: &dyn std::error::Error, told: &str) -> End {
        let what = format!("{} from {from} over version 1 ended: {error}", self.name);
        self.report.trouble(
            &Failure::new(exit, what).advise(format!("{told} Version 1 does not tell its sender: look there, too.")),
        );
        End { exit, received: None, error: Some(error.to_string()) }
    }

    fn tell(&self, peer: String, end: End) {
        let End { exit, received, error } = end;
        let shown = Ended {
            verdict: exit.word(),
            version: 1,
            name: self.name.as_str(),
            peer,
            assurance: received.map(|received| received.assurance.to_string()),
            bytes_guest: self.layout.bytes(),
            bytes_wire: received.map(|received| received.bytes),
            closed: received.map(|received| received.closed),
            error,
        };
        self.report.event("transfer", &shown);
    }

    /// Ends what is under way, which version 1 cannot go on with, and tells the counters. How many were refused, and
    /// whether one was cut off.
    pub(crate) async fn stop(&mut self) -> (u64, Option<Exit>) {
        let mut exit = None;
        self.cut();
        if !self.is_idle() {
            let ended = over(&mut self.running).await;
            exit = self.over(ended);
        }
        let spoken = Arc::clone(&self.spoken);
        let _ = spawn_blocking(move || spoken.flush()).await;
        let (counts, turned_away) = (self.listener.counts(), self.endpoint.offences().turned_away);
        let (received, defects) = (self.options.tally.received(), self.options.tally.defects());
        let defects = defects.all().filter(|(_, count)| *count > 0).map(|(kind, count)| (kind.name(), count));
        let defects: BTreeMap<_, _> = defects.collect();
        let of = |why| turned_away.get(&why).copied().unwrap_or(0);
        let shown = Counts {
            tls: counts.tls,
            started: counts.started,
            joined: counts.joined,
            held: counts.held,
            garbage: counts.garbage,
            silent: counts.silent,
            too_many: counts.turned_away,
            unclaimed: counts.unclaimed,
            clear_text: of(TurnedAway::ClearText),
            downgrade_refused: of(TurnedAway::DowngradeRefused),
            defects: defects.values().sum(),
            defect_kinds: defects,
            ended: received.ended.iter().map(|(ending, count)| (ending.word(), *count)).collect(),
            bytes: received.bytes,
            spoken_unwritten: self.listener.unwritten(),
            spoken_forgotten: self.listener.forgotten(),
        };
        shown.warn(&self.report);
        self.report.event("v1-port", &shown);
        (self.refused, exit)
    }
}

/// The end of what is under way, if anything is.
async fn over(running: &mut Option<Running>) -> Result<Received, Ending> {
    let Some(running) = running else { return std::future::pending().await };
    (&mut running.task).await.unwrap_or_else(|_| {
        // It was cut, or died.
        Err(if running.showing.load(Ordering::SeqCst) {
            Ending::Unshown(Unshown::unknown())
        } else {
            Ending::Failed(TransferError::Cancelled)
        })
    })
}

impl Staging {
    /// Makes it, on a thread that may wait for the disk.
    async fn make(self) -> Result<ImageStaging, GuestError> {
        let (made, staged) = oneshot::channel();
        spawn_blocking(move || {
            // What one before left that could not be removed then. Nobody else has this id.
            self.folder.remove(self.transfer);
            if let Err(Ok(nobodys)) = made.send(self.folder.create(&self.name, self.transfer, self.layout)) {
                nobodys.discard();
            }
        });
        staged.await.unwrap_or_else(|_| Err(GuestError::Other("the thread that stages it died".into())))
    }
}

/// Takes an image until it is staged, or nobody wants it before all has come.
async fn take(mut session: LegacySession, mut unwanted: oneshot::Receiver<()>) -> Result<Received, TransferError> {
    tokio::select! {
        ended = session.outcome() => return ended,
        _ = &mut unwanted => session.retire(),
    }
    session.outcome().await
}
