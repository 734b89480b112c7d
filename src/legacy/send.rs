use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dwcp_core::Guest;
use dwcp_core::guest::ImageSource;
use dwcp_core::session::Time;
use dwcp_v1_compat::message::Outgoing;
use dwcp_v1_compat::net::{
    GuestPayload, MigrateOptions, PlaintextPolicy, SendOptions, Sent, SpokenV3, TransferError, accept, dial, send_disk,
    send_memory,
};
use dwcp_v1_compat::wire::{Framing, Tier};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};

use super::advice;
use super::args::{FormArg, LegacyArgs};
use super::exit::failure;
use super::{SPOKEN, not_allowed, resolve};
use crate::cli::SendArgs;
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::report::Report;
use crate::{state, units};

/// To make the connections of a message.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// The last line of `--json`. Every field stands in every summary; null is what nobody knows.
#[derive(Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    version: u16,
    framing: &'a str,
    name: &'a str,
    bytes_guest: Option<u64>,
    bytes_wire: Option<u64>,
    /// Whether the peer closed its connections after the last byte, without a reset. It need not have stored anything.
    closed: Option<bool>,
    /// Never: version 1 has no word for it.
    acknowledged: bool,
    error: Option<&'a str>,
    advice: Option<&'a str>,
}

/// `dwcp send --v1`.
pub(crate) async fn send(args: &SendArgs, report: &Report) -> Exit {
    let sent = transfer(args, report).await;
    let (failure, figures) = match &sent {
        Ok(sent) => (None, Some(*sent)),
        Err(failure) => (Some(failure), None),
    };
    match (failure, figures) {
        (Some(failure), _) => report.trouble(failure),
        (None, Some((bytes, sent))) => tell(args, report, bytes, sent),
        (None, None) => {}
    }
    let exit = failure.map_or(Exit::Ok, |failure| failure.exit);
    let summary = Summary {
        verdict: exit.word(),
        version: 1,
        framing: args.legacy.shared.word(),
        name: args.name.as_str(),
        bytes_guest: figures.map(|(bytes, _)| bytes),
        bytes_wire: figures.map(|(_, sent)| sent.bytes),
        closed: figures.map(|(_, sent)| sent.closed),
        acknowledged: false,
        error: failure.map(|failure| failure.what.as_str()),
        advice: failure.and_then(|failure| failure.advice.as_deref()),
    };
    report.event("summary", &summary);
    exit
}

fn tell(args: &SendArgs, report: &Report, bytes: u64, sent: Sent) {
    report.say(&format!(
        "{} was sent to {} over version 1: {}, {} on the wire. Nobody said that it arrived.",
        args.name,
        args.to,
        units::bytes(bytes),
        units::bytes(sent.bytes),
    ));
    if !sent.closed {
        report.warn("warning: the peer did not close its connections after the last byte; whether it took the last bytes is unknown");
    }
    report.warn(
        "note: look at the peer before you use the image there, or remove it here; version 1 acknowledges nothing",
    );
}

/// How many bytes the image has, and what was sent of it.
async fn transfer(args: &SendArgs, report: &Report) -> Result<(u64, Sent), Failure> {
    let legacy = &args.legacy.shared;
    let (policy, form) = (legacy.policy()?, legacy.form()?);
    let Some(path) = &args.file else {
        return Err(Failure::new(Exit::Usage, "version 1 sends one image, and no rounds").advise("Name the last one."));
    };
    let image = Arc::new(ImageSource::open(path)?);
    let guest: Arc<dyn Guest> = Arc::<ImageSource>::clone(&image);
    let state_dir = state::folder(args.state_dir.clone())?;
    state::make(&state_dir)?;
    let spoken = SpokenV3::open(state_dir.join(SPOKEN)).map_err(|error| failure(&error))?;
    let peer = peer(&args.to, &policy, &spoken).await?;
    if form == FormArg::Plain {
        fits(legacy, guest.layout().bytes()).map_err(|error| failed(&error))?;
    }
    let connect = connector(args, peer, report).await?;
    let bytes = guest.layout().bytes();
    let mut interrupts = Interrupts::watch()?;
    let options = SendOptions { chunk_bytes: legacy.chunk_bytes(), ..SendOptions::new(legacy.framing()) };
    // In a folder of ours: the temporary one may be memory.
    let migrate = MigrateOptions { send: options.clone(), tier: Tier::Local, spool: state_dir };
    report.event("started", &Started { version: 1, name: args.name.as_str(), to: peer.to_string(), bytes });
    let sending = async {
        match form {
            FormArg::Memory => send_memory(guest, migrate, move || connect.streams()).await,
            FormArg::Disk => send_disk(guest, legacy.disk(), migrate, move || connect.streams()).await,
            FormArg::Plain => plain(guest, connect, &options).await,
        }
    };
    let sent = tokio::select! {
        sent = sending => sent,
        () = interrupts.next() => Err(TransferError::Cancelled),
    };
    // Of what was put down for the peer before it was asked, nobody has looked at the file since.
    let sent = sent.and_then(|sent| image.pause().map(|()| sent).map_err(TransferError::from));
    sent.map(|sent| (bytes, sent)).map_err(|error| failed(&error))
}

fn failed(error: &TransferError) -> Failure {
    let hint = advice::sending(error);
    failure(error).advise(hint.unwrap_or("The image here is intact; what the peer may have of it is of no use."))
}

/// Whether a message may carry as many bytes, before anybody is dialled for it. What is packed is not known so early.
fn fits(legacy: &LegacyArgs, bytes: u64) -> Result<(), TransferError> {
    Ok(Outgoing::new(legacy.framing(), bytes, legacy.chunk_bytes(), 1, Time::default()).map(drop)?)
}

#[derive(Serialize)]
struct Started<'a> {
    version: u16,
    name: &'a str,
    to: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Listening {
    address: String,
}

/// The first address of the host that clear text may be spoken with.
async fn peer(to: &str, policy: &PlaintextPolicy, spoken: &SpokenV3) -> Result<SocketAddr, Failure> {
    let mut refused = None;
    for address in resolve(to).await? {
        match policy.allows(address.ip(), spoken) {
            Ok(()) => return Ok(address),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    let nowhere = || Failure::new(Exit::Unreachable, format!("{to} has no address"));
    Err(refused.map_or_else(nowhere, not_allowed))
}

/// How the connections of a message come about.
enum Connector {
    Dial(SocketAddr, u16),
    /// An mst8 peer dials, whether it sends or receives.
    Accept(TcpListener, SocketAddr, u16),
}

async fn connector(args: &SendArgs, peer: SocketAddr, report: &Report) -> Result<Connector, Failure> {
    let count = args.legacy.v1_connections;
    match (&args.legacy.v1_listen, args.legacy.shared.framing()) {
        (None, Framing::Amst16) => Ok(Connector::Dial(peer, count)),
        (Some(at), _) => {
            let listener = TcpListener::bind(at).await;
            let cannot = |error| {
                Failure::new(Exit::Failed, format!("cannot listen on {at}: {error}"))
                    .advise("Name a free port of an address of this host with --v1-listen.")
            };
            let listener = listener.map_err(cannot)?;
            let address = listener.local_addr().map_err(cannot)?.to_string();
            report.say(&format!("waiting on {address} for {count} connections of {}", peer.ip()));
            report.event("listening", &Listening { address });
            Ok(Connector::Accept(listener, peer, count))
        }
        (None, Framing::Mst8) => {
            let what = "an mst8 peer dials, even to receive: there is nowhere for it to dial to";
            Err(Failure::new(Exit::Usage, what).advise("Say where with --v1-listen ADDR:PORT."))
        }
    }
}

impl Connector {
    async fn streams(self) -> Result<Vec<TcpStream>, TransferError> {
        match self {
            Self::Dial(peer, count) => dial(peer, count, CONNECT_LIMIT).await,
            Self::Accept(listener, peer, count) => accept(&listener, peer.ip(), count, CONNECT_LIMIT).await,
        }
    }
}

async fn plain(guest: Arc<dyn Guest>, connect: Connector, options: &SendOptions) -> Result<Sent, TransferError> {
    let streams = connect.streams().await?;
    dwcp_v1_compat::net::send(streams, &mut GuestPayload(guest), options).await
}
