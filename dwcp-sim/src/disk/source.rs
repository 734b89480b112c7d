//! A sender: what it remembers of an offer, and that it gave up.

use dwcp_core::Layout;
use dwcp_core::net::Records;
use dwcp_core::session::{Record, Standing};
use dwcp_core::wire::{Digest, FenceEpoch, GuestKind, Name, Offer, TransferId};

use super::model::{Disk, State};
use super::{Node, Stop};
use crate::PEER;
use crate::rng::Rng;

const RECORDS: &str = "state";
const KEY: &str = "vm1 host:7070";

/// What was said.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Told {
    /// The sink knows the transfer by this id: it may be READY.
    offered: Option<u8>,
    /// RUN was said.
    gave_up: Option<u8>,
    /// RUNNING was heard, and the record is no longer needed.
    over: bool,
    /// Ids so far.
    ids: u8,
}

/// One sender of one image.
pub(super) struct Sender;

fn id(number: u8) -> TransferId {
    TransferId([number; 16])
}

impl Node for Sender {
    type Told = Told;

    fn first(&self) -> State<Told> {
        State::default()
    }

    fn live(&self, disk: &Disk<Told>, rng: &mut Rng, _: bool) -> Result<(), Stop> {
        let records = Records::over(disk.folder(RECORDS));
        let told = disk.told();
        let listing = records.list().map_err(|error| Stop::Broken(error.to_string()))?;
        if let Some(damaged) = listing.damaged.first() {
            return Err(Stop::Broken(format!("a record was half written: {}", damaged.error)));
        }
        let remembered = listing.records.iter().map(|record| record.transfer).next();
        if let Some(gave_up) = told.gave_up.filter(|_| !told.over)
            && remembered != Some(id(gave_up))
        {
            return Err(Stop::Broken("RUN was said, and it is not remembered".into()));
        }
        if let Some(transfer) = remembered {
            // It only asks, until it is told.
            disk.tell(|told| told.over = true);
            return records.forget(transfer).map_err(Stop::fault);
        }
        if told.over {
            return Ok(());
        }
        let fresh = told.ids + 1;
        disk.tell(|told| told.ids = fresh);
        let (transfer, _offering) = records.offering(KEY, id(fresh)).map_err(Stop::fault)?;
        if told.offered.is_some_and(|offered| id(offered) != transfer) {
            return Err(Stop::Broken("what was offered is offered under another id".into()));
        }
        disk.tell(|told| told.offered = Some(transfer.0[0]));
        if rng.percent(60) {
            let (name, layout) = (Name::new("vm1").unwrap(), Layout::new(&[4096]).unwrap());
            let offer = Offer {
                transfer,
                epoch: FenceEpoch(1),
                kind: GuestKind::Image,
                name,
                dictionaries: Vec::new(),
                baselines: Vec::new(),
                layout,
            };
            records.store(&Record::of(&offer, 1, Digest([7; 32]), PEER, Standing::GaveUp)).map_err(Stop::fault)?;
            disk.tell(|told| told.gave_up = Some(transfer.0[0]));
        }
        Ok(())
    }
}
