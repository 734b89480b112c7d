use super::error::{Fault, Malformed};
use super::fields::{Put, Reader};
use super::{Digest, FRAME_HEADER_BYTES, FenceEpoch, FrameHeader, FrameType};
use crate::extent::{Extent, MAX_EXTENT_PAGES, RegionId, Run};

/// Bytes of an extent's head before its run list.
pub const EXTENT_HEAD_MAX: usize = 8 + 8 + 32 + 2 + 2;

/// What stands before the payload of an extent frame.
///
/// ```text
///  0     8       16       48       50     52
///  +-----+-------+--------+--------+------+----------------------+---------
///  | seq | epoch | digest | region | runs | (gap, count) varints | block
///  +-----+-------+--------+--------+------+----------------------+---------
/// ```
///
/// `gap` is the distance from the end of the run before (from page 0 for the first); it is at least
/// 1 from the second run on, because runs that touch are one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentHead {
    /// Place in the lane: 0, 1, 2, ... spec: E-1
    pub seq: u64,
    /// Must be the transfer's. spec: E-2
    pub epoch: FenceEpoch,
    /// Over place and plain content, see `session::leaves::extent_digest`. spec: E-5
    pub digest: Digest,
    /// The pages carried.
    pub extent: Extent,
}

impl ExtentHead {
    /// Appends frame header and head for a block of `block_bytes`.
    ///
    /// # Errors
    /// The frame would exceed 32 bits, which no block of at most 256 pages does.
    pub fn encode(&self, block_bytes: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let start = out.len();
        out.put(&[0; FRAME_HEADER_BYTES]);
        out.put_u64(self.seq);
        out.put_u64(self.epoch.0);
        out.put(&self.digest.0);
        out.put_u16(self.extent.region().0);
        let runs = self.extent.runs();
        out.put_u16(u16::try_from(runs.len()).unwrap_or(u16::MAX));
        let mut free_from = 0;
        for run in runs {
            out.put_varint(run.start - free_from);
            out.put_varint(u32::from(run.count));
            free_from = run.end();
        }
        let body = out.len() - start - FRAME_HEADER_BYTES + block_bytes;
        let too_long = Fault { at: 0, what: Malformed::TooLong { length: u64::MAX, limit: u64::from(u32::MAX) } };
        let length = u32::try_from(body).map_err(|_| too_long)?;
        if let Some(header) = out.get_mut(start..start + FRAME_HEADER_BYTES) {
            header.copy_from_slice(&FrameHeader::new(FrameType::Extent, length).encode());
        }
        Ok(())
    }

    /// Splits the body of an extent frame into head and block. spec: E-3
    ///
    /// # Errors
    /// Truncation, varints that are not shortest, runs that fall, touch, overflow or exceed 256
    /// pages.
    pub fn decode(body: &[u8]) -> Result<(Self, &[u8]), Fault> {
        let mut reader = Reader::new(body);
        let seq = reader.u64()?;
        let epoch = FenceEpoch(reader.u64()?);
        let digest = Digest(reader.array()?);
        let region = RegionId(reader.u16()?);
        let count = usize::from(reader.u16()?);
        if count > MAX_EXTENT_PAGES {
            let length = u64::try_from(count).unwrap_or(u64::MAX);
            return Err(reader.fault(Malformed::TooLong { length, limit: 256 }));
        }
        let mut runs = Vec::with_capacity(count);
        let mut free_from: u32 = 0;
        for index in 0..count {
            let at = reader.at();
            let gap = reader.varint()?;
            let pages = reader.varint()?;
            let overflow = || Fault { at, what: crate::extent::ExtentError::PageOverflow { index }.into() };
            let start = free_from.checked_add(gap).ok_or_else(overflow)?;
            let pages = u16::try_from(pages)
                .map_err(|_| Fault { at, what: crate::extent::ExtentError::TooManyPages { index }.into() })?;
            free_from = start.checked_add(u32::from(pages)).ok_or_else(overflow)?;
            runs.push(Run { start, count: pages });
        }
        let extent = Extent::new(region, runs).map_err(|what| reader.fault(what))?;
        Ok((Self { seq, epoch, digest, extent }, reader.remainder()))
    }
}
