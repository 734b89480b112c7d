//! Whether an extent that came on a lane may be written: all that is checked of it, in the order in which it is.

use std::fmt;
use std::sync::Arc;

use dwcp_hde::{BaseMissing, BaseSource, Dictionaries};

use super::SessionError;
use super::leaves::extent_digest;
use super::page_hash::hash_pages;
use crate::extent::{FlatPage, Layout, Region, RegionId};
use crate::guest::{GuestError, OldPages};
use crate::wire::{Digest, ErrorCode, ExtentHead, FenceEpoch, FrameType, LaneId, WireError};

/// The check of one lane's extents. Nothing comes out of it that was not found right: the worker of a lane and the
/// campaigns of `dwcp-sim` are its users.
pub struct ExtentCheck {
    lane: LaneId,
    epoch: FenceEpoch,
    next_seq: u64,
    dictionaries: Dictionaries,
    baseline: Option<Arc<dyn OldPages>>,
}

/// What a check takes: some hundred KiB that lanes may share, one at a time.
pub struct Workbench {
    leaves: Vec<Digest>,
    scratch: Vec<u8>,
    decoder: dwcp_hde::Decoder,
}

impl Workbench {
    /// An empty one; it grows with what is checked.
    pub fn new() -> Self {
        Self { leaves: Vec::new(), scratch: Vec::new(), decoder: dwcp_hde::Decoder::new() }
    }
}

impl Default for Workbench {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Workbench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workbench").field("scratch_bytes", &self.scratch.len()).finish_non_exhaustive()
    }
}

/// An extent that may be written.
#[derive(Debug)]
pub struct Checked<'a> {
    /// What it says of itself.
    pub head: ExtentHead,
    /// Its region.
    pub bounds: Region,
    /// Its plain pages, in the order of its runs.
    pub plain: &'a [u8],
    /// Their leaves.
    pub leaves: &'a [Digest],
}

/// Reads a page of the guest as it is: an old page that a block may refer to.
pub type ReadPage<'a> = dyn FnMut(RegionId, u32, &mut [u8]) -> Result<(), GuestError> + 'a;

impl ExtentCheck {
    /// For a lane that has carried nothing yet.
    pub fn new(lane: LaneId, epoch: FenceEpoch) -> Self {
        Self { lane, epoch, next_seq: 0, dictionaries: Dictionaries::none(), baseline: None }
    }

    /// Lets blocks name these dictionaries, which both ends agreed on. spec: K-10
    #[must_use]
    pub fn with_dictionaries(self, dictionaries: Dictionaries) -> Self {
        Self { dictionaries, ..self }
    }

    /// Lets blocks name pages of this baseline, which both ends agreed on. spec: K-12
    #[must_use]
    pub fn with_baseline(self, baseline: Option<Arc<dyn OldPages>>) -> Self {
        Self { baseline, ..self }
    }

    /// The number of the extent that is due.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Checks the body of an extent frame. spec: E-1, E-2, E-4, E-5
    ///
    /// # Errors
    /// What is wrong with it, or that the guest cannot be read.
    pub fn check<'a>(
        &mut self,
        bench: &'a mut Workbench,
        body: &'a [u8],
        layout: &Layout,
        read: &mut ReadPage<'_>,
    ) -> Result<Checked<'a>, SessionError> {
        let decoded = ExtentHead::decode(body);
        let (head, block) = decoded.map_err(|fault| malformed(&fault.on(self.lane, FrameType::Extent.byte())))?;
        if head.seq != self.next_seq {
            return Err(self.bad(format!("sequence number {} where {} is due", head.seq, self.next_seq)));
        }
        if head.epoch != self.epoch {
            return Err(self.bad(format!("{} where {} is due", head.epoch, self.epoch)));
        }
        let bounds = head.extent.check(layout).map_err(|error| self.bad(error.to_string()))?;
        let mut bases = Held {
            region: head.extent.region(),
            numbers: head.extent.page_numbers().collect(),
            read,
            baseline: self.baseline.as_deref(),
            failed: None,
        };
        let (lane, position) = (self.lane, self.next_seq);
        let pages = head.extent.pages();
        let plain = bench.decoder.decode_with(block, pages, &mut bases, &self.dictionaries, &mut bench.scratch);
        if let Some(error) = bases.failed {
            return Err(error.into());
        }
        let plain = plain.map_err(|error| undecodable(lane, position, &error))?;
        bench.leaves.clear();
        hash_pages(plain, &mut bench.leaves);
        if extent_digest(head.epoch, &head.extent, &bench.leaves) != head.digest {
            let (code, what) =
                (ErrorCode::ExtentDigest, "the digest of an extent does not match its plain bytes".into());
            return Err(SessionError::Integrity { code, lane, position, what });
        }
        self.next_seq += 1;
        Ok(Checked { head, bounds, plain, leaves: &bench.leaves })
    }

    fn bad(&self, what: String) -> SessionError {
        SessionError::PeerViolation { code: ErrorCode::BadExtent, lane: self.lane, position: self.next_seq, what }
    }
}

impl fmt::Debug for ExtentCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtentCheck")
            .field("lane", &self.lane)
            .field("next_seq", &self.next_seq)
            .finish_non_exhaustive()
    }
}

/// What this sink has that a block may refer to. That something cannot be read is no fault of the peer's.
struct Held<'a, 'r> {
    region: RegionId,
    /// Of the extent's pages.
    numbers: Vec<u32>,
    read: &'a mut ReadPage<'r>,
    baseline: Option<&'a dyn OldPages>,
    failed: Option<GuestError>,
}

impl Held<'_, '_> {
    fn told(&mut self, read: Result<(), GuestError>) -> Result<(), BaseMissing> {
        read.map_err(|error| {
            self.failed = Some(error);
            BaseMissing
        })
    }
}

impl BaseSource for Held<'_, '_> {
    fn base(&mut self, page: usize, into: &mut [u8]) -> Result<(), BaseMissing> {
        let number = self.numbers.get(page).copied().ok_or(BaseMissing)?;
        let read = (self.read)(self.region, number, into);
        self.told(read)
    }

    // spec: K-12
    fn of_baseline(&mut self, number: u32, into: &mut [u8]) -> Result<(), BaseMissing> {
        let baseline = self.baseline.ok_or(BaseMissing)?;
        let (region, page) = baseline.layout().locate(FlatPage(number)).ok_or(BaseMissing)?;
        let read = baseline.read(region, page, into);
        self.told(read)
    }
}

/// A block that claims too much is meant so; one that is broken may be so by chance. spec: K-5
fn undecodable(lane: LaneId, position: u64, error: &dwcp_hde::DecodeError) -> SessionError {
    let what = format!("block: {error}");
    match error {
        dwcp_hde::DecodeError::OutOfMemory => GuestError::Other(error.to_string()).into(),
        excess if excess.is_excess() => {
            SessionError::PeerViolation { code: ErrorCode::BadExtent, lane, position, what }
        }
        _ => SessionError::Integrity { code: ErrorCode::BadBlock, lane, position, what },
    }
}

/// Bytes that are no frame, as what ends a session.
pub(crate) fn malformed(error: &WireError) -> SessionError {
    SessionError::PeerViolation {
        code: ErrorCode::Malformed,
        lane: error.lane,
        position: u64::try_from(error.at).unwrap_or(u64::MAX),
        what: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Extent, PAGE_BYTES, Run};
    use crate::session::Leaves;
    use crate::session::leaves::leaf;

    const EPOCH: FenceEpoch = FenceEpoch(1);

    /// The body of an extent of one page, at this place, with the digest of `plain`.
    fn body(seq: u64, epoch: u64, page: u32, plain: &[u8], sent: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        let (effort, bases) = (dwcp_hde::Effort::Fast, dwcp_hde::Bases::none());
        if dwcp_hde::Encoder::new().encode(sent, &bases, effort, &mut block).unwrap().raw_tail {
            block.extend_from_slice(sent);
        }
        enclosed(seq, epoch, page, plain, &block)
    }

    /// The same with a block that is made.
    fn enclosed(seq: u64, epoch: u64, page: u32, plain: &[u8], block: &[u8]) -> Vec<u8> {
        let extent = Extent::new(RegionId(0), vec![Run { start: page, count: 1 }]).unwrap();
        let digest = extent_digest(FenceEpoch(epoch), &extent, &[leaf(plain)]);
        let mut frame = Vec::new();
        ExtentHead { seq, epoch: FenceEpoch(epoch), digest, extent }.encode(block.len(), &mut frame).unwrap();
        frame.extend_from_slice(block);
        frame.split_off(crate::wire::FRAME_HEADER_BYTES)
    }

    fn refused(check: &mut ExtentCheck, body: &[u8]) -> ErrorCode {
        let layout = Layout::new(&[8 * 4096]).unwrap();
        match check.check(&mut Workbench::new(), body, &layout, &mut |_, _, _| Ok(())) {
            Err(SessionError::PeerViolation { code, .. } | SessionError::Integrity { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    fn accepted(check: &mut ExtentCheck, body: &[u8]) -> Vec<u8> {
        let layout = Layout::new(&[8 * 4096]).unwrap();
        check.check(&mut Workbench::new(), body, &layout, &mut |_, _, _| Ok(())).unwrap().plain.to_vec()
    }

    // spec: E-1
    #[test]
    fn extents_come_in_sequence() {
        let (mut check, page) = (ExtentCheck::new(LaneId(1), EPOCH), vec![7; PAGE_BYTES]);
        for seq in [1, u64::MAX] {
            assert_eq!(refused(&mut check, &body(seq, 1, 0, &page, &page)), ErrorCode::BadExtent);
        }
        assert_eq!(accepted(&mut check, &body(0, 1, 0, &page, &page)), page);
        for seq in [0, 2] {
            assert_eq!(refused(&mut check, &body(seq, 1, 0, &page, &page)), ErrorCode::BadExtent);
        }
        assert_eq!(accepted(&mut check, &body(1, 1, 7, &page, &page)), page);
    }

    // spec: E-2
    #[test]
    fn an_extent_has_the_epoch_of_its_transfer() {
        let (mut check, page) = (ExtentCheck::new(LaneId(1), EPOCH), vec![7; PAGE_BYTES]);
        for epoch in [0, 2] {
            assert_eq!(refused(&mut check, &body(0, epoch, 0, &page, &page)), ErrorCode::BadExtent);
        }
    }

    // spec: E-5
    #[test]
    fn nothing_comes_out_whose_digest_is_another() {
        let (mut check, page) = (ExtentCheck::new(LaneId(1), EPOCH), vec![7; PAGE_BYTES]);
        let mut other = page.clone();
        other[PAGE_BYTES - 1] ^= 1;
        assert_eq!(refused(&mut check, &body(0, 1, 0, &page, &other)), ErrorCode::ExtentDigest);
        assert_eq!(check.next_seq(), 0);
    }

    /// Eight pages, of which the last cannot be read.
    #[derive(Debug)]
    struct Eight(Layout);

    impl OldPages for Eight {
        fn digest(&self) -> Digest {
            Digest([1; 32])
        }

        fn layout(&self) -> &Layout {
            &self.0
        }

        fn leaves_of(&self, layout: &Layout) -> Arc<Leaves> {
            Arc::new(Leaves::new(layout))
        }

        fn find(&self, _: Digest, _: (RegionId, u32)) -> Option<(RegionId, u32)> {
            None
        }

        fn read(&self, _: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
            into.fill(u8::try_from(first).unwrap());
            if first == 7 { Err(GuestError::Other("rotten".into())) } else { Ok(()) }
        }
    }

    // spec: K-12, O-9
    #[test]
    fn a_page_of_the_baseline_is_told_by_its_number_and_what_cannot_be_read_is_no_fault_of_the_peers() {
        let layout = Layout::new(&[8 * 4096]).unwrap();
        let named = |number: u32| {
            let plain = [u8::try_from(number % 8).unwrap(); PAGE_BYTES];
            let numbers = [Some(number)];
            let bases = dwcp_hde::Bases::none().with_pages_of_baseline(&numbers);
            let mut block = Vec::new();
            dwcp_hde::Encoder::new().encode(&plain.map(|_| 9), &bases, dwcp_hde::Effort::Fast, &mut block).unwrap();
            enclosed(0, 1, 0, &plain, &block)
        };
        let baseline: Arc<dyn OldPages> = Arc::new(Eight(layout.clone()));
        let mut check = ExtentCheck::new(LaneId(1), EPOCH).with_baseline(Some(baseline));
        assert_eq!(refused(&mut check, &named(1 << 31)), ErrorCode::BadBlock, "it has no such page");
        let error = check.check(&mut Workbench::new(), &named(7), &layout, &mut |_, _, _| Ok(())).unwrap_err();
        assert!(matches!(&error, SessionError::Guest(GuestError::Other(text)) if text == "rotten"), "{error:?}");
        assert_eq!(check.next_seq(), 0);
        assert_eq!(accepted(&mut check, &named(3)), [3; PAGE_BYTES]);
        let mut without = ExtentCheck::new(LaneId(1), EPOCH);
        assert_eq!(refused(&mut without, &named(3)), ErrorCode::BadBlock, "none was agreed on");
    }

    // spec: K-5
    #[test]
    fn a_block_that_claims_too_much_is_no_accident() {
        let (mut check, page) = (ExtentCheck::new(LaneId(1), EPOCH), vec![7; PAGE_BYTES]);
        let sound = body(0, 1, 0, &page, &page);
        let block = crate::wire::EXTENT_HEAD_MAX + 2;
        let mut broken = sound.clone();
        broken[block] ^= 0xff;
        assert_eq!(refused(&mut check, &broken), ErrorCode::BadBlock, "another version");
        let mut larger = sound;
        larger[block + 1] = larger[block + 1].wrapping_add(1);
        assert_eq!(refused(&mut check, &larger), ErrorCode::BadExtent, "more pages");
    }
}
