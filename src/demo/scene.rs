//! Everything that a run consists of: a private folder, two pieces of shared memory, five processes.

use std::fs::{self, DirBuilder};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use dwcp_core::net::Identity;
use dwcp_core::{PAGE_BYTES, net};
use serde::Serialize;
use tokio::sync::mpsc;

use super::DemoArgs;
use super::arena::Arena;
use super::child::{Child, Said, Who};
use super::crash::{self, Moment};
use super::downgrade;
use super::message::{ClientStart, GuestPlace, GuestStart, NodeStart, Opening, SinkStart, SourceStart};
use super::store;

/// The folder of one run: sockets, the client's log, records. Only this user may enter. Keys never
/// stand in it: they go through pipes.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn create() -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        for attempt in 0..100 {
            let path = parent.join(format!("dwcp-demo-{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left by a run that was killed, or somebody else's: never enter it.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot make {}; set TMPDIR", path.display()));
                }
            }
        }
        bail!("{} is full of folders dwcp-demo-*; remove them", parent.display())
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the nodes need to know of each other.
#[derive(Debug)]
struct Keys {
    identity: String,
    peer: String,
}

/// The parts of a run that exist before any process does.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) guest_a: GuestPlace,
    pub(super) guest_b: GuestPlace,
    keys_a: Keys,
    keys_b: Keys,
    /// The memory of both guests lives as long as somebody holds or maps it.
    _memory: [OwnedFd; 2],
    folder: Folder,
    /// What both nodes obey, if version 3 is to be switched off on the way.
    pub(super) flags: Option<PathBuf>,
}

impl Scene {
    pub(super) fn set(args: &DemoArgs) -> anyhow::Result<Self> {
        let folder = Folder::create()?;
        let arena_bytes = args.size.next_multiple_of(u64::try_from(PAGE_BYTES)?);
        let (memory_a, guest_a) = place(&folder, "a", arena_bytes)?;
        let (memory_b, guest_b) = place(&folder, "b", arena_bytes)?;
        let (a, b) = (Identity::generate("node-a")?, Identity::generate("node-b")?);
        let keys =
            |own: &Identity, peer: &Identity| Keys { identity: own.to_pem(), peer: peer.fingerprint().to_string() };
        let (keys_a, keys_b) = (keys(&a, &b), keys(&b, &a));
        let flags = args.downgrade_at.map(|_| folder.join("flags.json"));
        if let Some(flags) = &flags {
            downgrade::write(flags, 1, true, &args.reason)?;
        }
        Ok(Self { guest_a, guest_b, keys_a, keys_b, _memory: [memory_a, memory_b], folder, flags })
    }

    pub(super) async fn guest(&self, who: Who, said: &mpsc::Sender<Said>) -> anyhow::Result<Child> {
        let serve = who == Who::GuestAtSource;
        let place = if serve { self.guest_a.clone() } else { self.guest_b.clone() };
        self.start(who, GuestStart { place, serve }, said).await
    }

    pub(super) async fn client(&self, args: &DemoArgs, said: &mpsc::Sender<Said>) -> anyhow::Result<Child> {
        let start = ClientStart {
            stores: vec![self.guest_a.store.clone(), self.guest_b.store.clone()],
            keys: store::keys(self.guest_a.arena_bytes),
            write_rate: args.write_rate,
            log: self.folder.join("acknowledged"),
        };
        self.start(Who::Client, start, said).await
    }

    /// The sink's node; `again`: where the one before it has listened.
    pub(super) async fn node_b(
        &self,
        args: &DemoArgs,
        again: Option<String>,
        said: &mpsc::Sender<Said>,
    ) -> anyhow::Result<Child> {
        let hold = args.crash.is_some() && args.at == Moment::SwitchOver && again.is_none();
        let node = self.node(&self.guest_b, &self.keys_b, "records-b", again.is_some());
        let start = SinkStart { node, at: again.unwrap_or_else(|| "127.0.0.1:0".into()), hold };
        self.start(Who::NodeB, start, said).await
    }

    pub(super) async fn node_a(
        &self,
        args: &DemoArgs,
        to: String,
        again: bool,
        said: &mpsc::Sender<Said>,
    ) -> anyhow::Result<Child> {
        let limited = !again && (args.crash.is_some() || args.downgrade_at.is_some());
        let start = SourceStart {
            node: self.node(&self.guest_a, &self.keys_a, "records-a", again),
            crash: args.crash.is_some(),
            until_crash: limited.then(|| crash::limit(args)).flatten(),
            to,
            lanes: args.lanes,
            downtime_ms: u64::try_from(args.downtime.as_millis()).unwrap_or(u64::MAX),
            bandwidth: args.bandwidth.map(|rate| rate.0.get()),
            #[cfg(feature = "sim")]
            fault: args.fault,
        };
        self.start(Who::NodeA, start, said).await
    }

    async fn start<T: Serialize>(&self, who: Who, start: T, said: &mpsc::Sender<Said>) -> anyhow::Result<Child> {
        let opening = Opening { folder: self.folder.0.clone(), start };
        Child::start(who, &opening, said.clone()).await
    }

    fn node(&self, place: &GuestPlace, keys: &Keys, records: &str, again: bool) -> NodeStart {
        NodeStart {
            place: place.clone(),
            identity: keys.identity.clone(),
            trust: keys.peer.clone(),
            records: self.folder.join(records),
            again,
            flags: self.flags.clone(),
        }
    }

    /// Whether node A had passed the point of no return. Its record is what counts, dead or alive.
    pub(super) fn source_gave_up(&self) -> anyhow::Result<bool> {
        let records = net::Records::open(self.folder.join("records-a"))?;
        Ok(!records.list()?.is_empty())
    }
}

fn place(folder: &Folder, name: &str, arena_bytes: u64) -> anyhow::Result<(OwnedFd, GuestPlace)> {
    let memory = Arena::create(&format!("dwcp-guest-{name}"), arena_bytes)?;
    // Anonymous memory has no name in any folder, so nothing is left of it, however this ends.
    let arena = Path::new("/proc").join(std::process::id().to_string()).join("fd").join(memory.as_raw_fd().to_string());
    let (store, control) = (folder.join(&format!("store-{name}")), folder.join(&format!("control-{name}")));
    Ok((memory, GuestPlace { arena, arena_bytes, store, control }))
}
