use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwcp_core::guest::{ImageFolder, ImageStaging};
use dwcp_core::net::{Endpoint, Transfer, TurnedAway};
use dwcp_core::wire::{GuestKind, Name, TransferId};
use dwcp_core::{Guest, GuestError, Layout};
use dwcp_v1_compat::message::{Deadlines, Received, Shape};
use dwcp_v1_compat::net::{
    Form, LegacyArrival, LegacyListener, LegacyPort, ReceiveOptions, SpokenV3, Tally, TransferError,
};
use dwcp_v1_compat::wire::Framing;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

use super::SPOKEN;
use super::advice;
use super::exit::failure;
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
    refused: u64,
    report: Report,
}

/// An image that comes.
struct Running {
    from: IpAddr,
    task: JoinHandle<Result<Received, Ending>>,
}

/// Why an image did not come.
enum Ending {
    /// There is no place for it.
    Refused(GuestError),
    Failed(TransferError),
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
            refused: 0,
            report: report.clone(),
        };
        Ok((endpoint, Some(port)))
    }

    /// The name that is taken for what comes over version 1.
    pub(crate) fn name(&self) -> (TransferId, Name) {
        (self.transfer, self.name.clone())
    }

    /// Takes what comes until one image has come, or has not. Cancel safe.
    pub(crate) async fn next(&mut self) -> Exit {
        loop {
            tokio::select! {
                Some(arrival) = self.listener.accept() => self.begin(arrival),
                ended = over(&mut self.running) => if let Some(exit) = self.over(ended) {
                    return exit;
                },
            }
        }
    }

    fn begin(&mut self, arrival: LegacyArrival) {
        let from = arrival.from();
        if self.running.is_some() {
            let error = "another version 1 transfer is under way, and both would have the same name";
            return self.refuse(&from.to_string(), error);
        }
        let (name, layout) = (self.name.clone(), self.layout.clone());
        let staging = Staging { folder: self.folder.clone(), name, transfer: self.transfer, layout };
        let (form, options, report) = (self.form.clone(), self.options.clone(), self.report.clone());
        let taking = async move {
            let (name, bytes) = (staging.name.clone(), staging.layout.bytes());
            let staging = staging.make().await.map_err(Ending::Refused)?;
            report.event("started", &Started { version: 1, name: name.as_str(), peer: from.to_string(), bytes });
            take(arrival, Arc::new(staging), form, options).await.map_err(Ending::Failed)
        };
        self.running = Some(Running { from, task: tokio::spawn(taking) });
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
        let ended = match ended {
            Ok(received) => Ok(received),
            Err(Ending::Failed(error)) => Err(error),
            Err(Ending::Refused(error)) => {
                self.refuse(&from, &error.to_string());
                return None;
            }
        };
        Some(self.end(from, ended))
    }

    fn end(&self, from: String, ended: Result<Received, TransferError>) -> Exit {
        let (exit, bytes) =
            (ended.as_ref().map_or_else(|error| failure(error).exit, |_| Exit::Ok), self.layout.bytes());
        let path = self.dir.join(self.name.as_str());
        match &ended {
            Ok(received) => self.report.say(&format!(
                "{} is here, {}: {} from {from} over version 1 in clear text; nobody proved who sent it",
                path.display(),
                received.assurance,
                units::bytes(bytes)
            )),
            Err(error) => {
                let hint = advice::receiving(error).map_or(String::new(), |hint| format!("{hint} "));
                let told = "Nothing of it became visible here. Version 1 does not tell its sender: look there, too.";
                let what = format!("{} from {from} over version 1 ended: {error}", self.name);
                self.report.trouble(&Failure::new(exit, what).advise(format!("{hint}{told}")));
            }
        }
        let (received, error) = match ended {
            Ok(received) => (Some(received), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let shown = Ended {
            verdict: exit.word(),
            version: 1,
            name: self.name.as_str(),
            peer: from,
            assurance: received.map(|received| received.assurance.to_string()),
            bytes_guest: bytes,
            bytes_wire: received.map(|received| received.bytes),
            closed: received.map(|received| received.closed),
            error,
        };
        self.report.event("transfer", &shown);
        exit
    }

    /// Ends what is under way, which version 1 cannot go on with, and tells the counters. How many were refused, and
    /// whether one was cut off.
    pub(crate) async fn stop(&mut self) -> (u64, Option<Exit>) {
        let mut exit = None;
        if let Some(running) = &self.running {
            running.task.abort();
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
    match running {
        Some(running) => (&mut running.task).await.unwrap_or(Err(Ending::Failed(TransferError::Cancelled))),
        None => std::future::pending().await,
    }
}

impl Staging {
    /// Makes it, on a thread that may wait for the disk.
    async fn make(self) -> Result<ImageStaging, GuestError> {
        let (made, staged) = oneshot::channel();
        spawn_blocking(move || {
            if let Err(Ok(nobodys)) = made.send(self.folder.create(&self.name, self.transfer, self.layout)) {
                nobodys.discard();
            }
        });
        staged.await.unwrap_or_else(|_| Err(GuestError::Other("the thread that stages it died".into())))
    }
}

/// An image that has come becomes visible under its name.
async fn take(
    arrival: LegacyArrival,
    staging: Arc<ImageStaging>,
    form: Form,
    options: ReceiveOptions,
) -> Result<Received, TransferError> {
    let guest: Arc<dyn Guest> = staging;
    let received = arrival.take(Arc::clone(&guest), form, options).outcome().await?;
    let shown = spawn_blocking(move || guest.resume()).await;
    shown.unwrap_or_else(|_| Err(GuestError::Other("the thread that stores it died".into())))?;
    Ok(received)
}
