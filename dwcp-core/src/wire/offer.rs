//! What is to be moved, and of what both ends have before.

use super::error::{Fault, Malformed};
use super::fields::{Put, Reader};
use super::limits::{MAX_OFFERED_BASELINES, MAX_OFFERED_DICTIONARIES};
use super::{Digest, FenceEpoch, Name, TransferId};
use crate::extent::{Layout, LayoutError, MAX_REGIONS};

/// What is to be moved. spec: O-1
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The transfer's name for its whole life.
    pub transfer: TransferId,
    /// Which incarnation of it.
    pub epoch: FenceEpoch,
    /// What it is.
    pub kind: GuestKind,
    /// What the source calls it: data for the sink, never a path.
    pub name: Name,
    /// Ids of the dictionaries that the source holds and would use, best first, at most four. spec: O-8
    pub dictionaries: Vec<Digest>,
    /// Digests of the baselines that the source holds, best first, at most four. spec: O-9
    pub baselines: Vec<Digest>,
    /// Its regions.
    pub layout: Layout,
}

/// What kind of state is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestKind {
    /// A running guest: memory and devices.
    Live,
    /// An image at rest: a disk or a memory file.
    Image,
}

/// The sink takes the offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Which transfer.
    pub transfer: TransferId,
    /// Which of the offered dictionaries the sink holds: bit n for the n-th. spec: O-8
    pub dictionaries: u8,
    /// Which of the offered baselines its guest has the pages of, counted from 0, if any. spec: O-9
    pub baseline: Option<u8>,
}

impl Offer {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.transfer.0);
        out.put_u64(self.epoch.0);
        out.put_u8(match self.kind {
            GuestKind::Live => 1,
            GuestKind::Image => 2,
        });
        out.put_u8(u8::try_from(self.name.as_str().len()).unwrap_or(u8::MAX));
        out.put(self.name.as_str().as_bytes());
        put_digests(&self.dictionaries, out);
        put_digests(&self.baselines, out);
        let regions: Vec<_> = self.layout.regions().collect();
        out.put_u16(u16::try_from(regions.len()).unwrap_or(u16::MAX));
        for (_, region) in regions {
            out.put_u64(region.bytes);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let transfer = TransferId(r.array()?);
        let epoch = FenceEpoch(r.u64()?);
        let at = r.at();
        let kind = match r.u8()? {
            1 => GuestKind::Live,
            2 => GuestKind::Image,
            value => return Err(Fault { at, what: Malformed::Value { field: "guest kind", value: value.into() } }),
        };
        let at = r.at();
        let length = usize::from(r.u8()?);
        let text = std::str::from_utf8(r.take(length)?).map_err(|_| Fault { at, what: Malformed::Text })?;
        let name = Name::new(text).map_err(|what| Fault { at, what: what.into() })?;
        // spec: O-8
        let dictionaries = read_digests(r, "dictionaries (at most 4)", MAX_OFFERED_DICTIONARIES)?;
        // spec: O-9
        let baselines = read_digests(r, "baselines (at most 4)", MAX_OFFERED_BASELINES)?;
        let at = r.at();
        let count = usize::from(r.u16()?);
        if count > MAX_REGIONS {
            return Err(Fault { at, what: LayoutError::TooManyRegions { regions: count }.into() });
        }
        let mut regions = Vec::with_capacity(count);
        for _ in 0..count {
            regions.push(r.u64()?);
        }
        let layout = Layout::new(&regions).map_err(|what| Fault { at, what: what.into() })?;
        Ok(Self { transfer, epoch, kind, name, dictionaries, baselines, layout })
    }
}

impl Accept {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put(&self.transfer.0);
        out.put_u8(self.dictionaries);
        out.put_u8(self.baseline.map_or(0, |number| number.saturating_add(1)));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let (transfer, dictionaries) = (TransferId(r.array()?), r.u8()?);
        let at = r.at();
        let value = r.u8()?;
        // spec: W-9, O-9
        if usize::from(value) > MAX_OFFERED_BASELINES {
            return Err(Fault { at, what: Malformed::Value { field: "baseline", value: value.into() } });
        }
        Ok(Self { transfer, dictionaries, baseline: value.checked_sub(1) })
    }
}

fn put_digests(digests: &[Digest], out: &mut Vec<u8>) {
    out.put_u8(u8::try_from(digests.len()).unwrap_or(u8::MAX));
    digests.iter().for_each(|digest| out.put(&digest.0));
}

fn read_digests(r: &mut Reader<'_>, field: &'static str, most: usize) -> Result<Vec<Digest>, Fault> {
    let at = r.at();
    let count = r.u8()?;
    if usize::from(count) > most {
        return Err(Fault { at, what: Malformed::Value { field, value: count.into() } });
    }
    (0..count).map(|_| Ok(Digest(r.array()?))).collect()
}
