//! The guest as its node sees it: shared memory with dirty bits, and a switch.

use std::sync::{Condvar, Mutex, PoisonError};

use dwcp_core::guest::{DirtyMap, Guest, GuestError, Pending};
use dwcp_core::{Layout, RegionId};

use super::arena::Arena;
use super::control::{Command, Control, Counters};
#[cfg(feature = "sim")]
use super::fault::Faulty;
use super::message::{Event, GuestPlace, report};

/// A guest in another process.
#[derive(Debug)]
pub(super) struct LiveGuest {
    layout: Layout,
    arena: Arena,
    control: Control,
    /// RUN waits here for a crash of either node.
    hold: Option<Hold>,
    #[cfg(feature = "sim")]
    faulty: Option<Faulty>,
}

/// A latch: closed until somebody says go.
#[derive(Debug, Default)]
struct Hold {
    open: Mutex<bool>,
    opened: Condvar,
}

impl LiveGuest {
    pub(super) fn attach(place: &GuestPlace) -> anyhow::Result<Self> {
        let arena = Arena::open(place)?;
        Ok(Self {
            layout: Layout::new(&[arena.bytes()])?,
            arena,
            control: Control::connect(&place.control)?,
            hold: None,
            #[cfg(feature = "sim")]
            faulty: None,
        })
    }

    #[cfg(feature = "sim")]
    pub(super) fn with_fault(mut self, fault: Option<super::Fault>) -> Self {
        self.faulty = fault.map(Faulty::new);
        self
    }

    /// Not run before [`LiveGuest::let_go`], whatever the source says.
    pub(super) fn held(mut self) -> Self {
        self.hold = Some(Hold::default());
        self
    }

    pub(super) fn let_go(&self) {
        if let Some(hold) = &self.hold {
            *hold.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
            hold.opened.notify_all();
        }
    }

    /// Zeros, as a sink's guest starts out: what a transfer that was cut off left here goes.
    pub(super) fn wipe(&self) -> Result<(), GuestError> {
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while let Some(rest) = self.arena.bytes().checked_sub(at).filter(|&rest| rest > 0) {
            let part = zeros.get(..usize::try_from(rest).unwrap_or(usize::MAX)).unwrap_or(&zeros);
            self.arena.write(at, part).map_err(|error| GuestError::io("the guest's memory", error))?;
            at += 1 << 20;
        }
        Ok(())
    }

    /// The guest runs elsewhere: this one ends, and its clients notice.
    pub(super) fn leave(&self) -> Result<(), GuestError> {
        self.tell(Command::Leave, Counters::default()).map(drop)
    }

    fn tell(&self, command: Command, counters: Counters) -> Result<Counters, GuestError> {
        self.control.tell(command, counters).map_err(|error| GuestError::Other(format!("{error:#}")))
    }

    fn byte(&self, region: RegionId, first: u32) -> Result<u64, GuestError> {
        let page = self.layout.flat(region, first).ok_or(GuestError::Outside { region, first })?;
        Ok(u64::from(page.0) * 4096)
    }
}

impl Guest for LiveGuest {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        let at = self.byte(region, first)?;
        self.arena.read(at, into).map_err(|error| GuestError::io("the guest's memory", error))
    }

    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        let at = self.byte(region, first)?;
        self.arena.write(at, from).map_err(|error| GuestError::io("the guest's memory", error))
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        #[cfg(feature = "sim")]
        if let Some(faulty) = &self.faulty {
            dirty.mark_words(RegionId(0), 0, faulty.harvest(&self.arena));
            return Ok(Pending::Unknown);
        }
        dirty.mark_words(RegionId(0), 0, self.arena.take_dirty());
        Ok(Pending::Unknown)
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.tell(Command::Pause, Counters::default()).map(drop)
    }

    fn resume(&self) -> Result<(), GuestError> {
        if let Some(hold) = &self.hold {
            report(&Event::Held);
            let mut open = hold.open.lock().unwrap_or_else(PoisonError::into_inner);
            while !*open {
                open = hold.opened.wait(open).unwrap_or_else(PoisonError::into_inner);
            }
        }
        self.tell(Command::Run, Counters::default()).map(drop)
    }

    /// A guest that stands still answers a second pause with its counters.
    fn save_devices(&self) -> Result<Vec<u8>, GuestError> {
        self.tell(Command::Pause, Counters::default()).map(|counters| counters.to_bytes().to_vec())
    }

    fn load_devices(&self, state: &[u8]) -> Result<(), GuestError> {
        let counters = Counters::from_bytes(state)
            .ok_or_else(|| GuestError::Other("the state of the devices is not that of a store".into()))?;
        self.tell(Command::Load, counters).map(drop)
    }
}
