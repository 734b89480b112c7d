//! The op list that a packet with delta flag 1 may hold: how the content differs from a baseline that both ends hold.
//!
//! ```text
//! baseline id, 0x00 | op count u32 | then for each op
//!     type u8 (0 copy, 1 add, 2 modify) | offset i64 | length i64 | for 1 and 2: data length u32, data
//! ```
//!
//! Ops stand in the order of their offsets and leave no gap. Copy takes the same offset of the baseline.

use super::fields::{Fields, Partial, put_u32, put_u64};
use super::limits::MAX_BASELINE_ID;

/// Blocks that are compared, at the same index in both.
const BLOCK: usize = 4096;
/// Op count, and the longest head of an op.
const OP_HEAD: usize = 1 + 8 + 8;
const COPY: u8 = 0;
const ADD: u8 = 1;
const MODIFY: u8 = 2;

/// Appends the op list that makes `next` of `base`.
///
/// A block that the baseline has is a copy, one that it has otherwise a modify, one beyond its end an add.
///
/// # Errors
/// The id is empty, longer than 256 bytes, or has a zero byte; `next` has more than 2^32 blocks.
pub fn encode(id: &str, base: &[u8], next: &[u8], out: &mut Vec<u8>) -> Result<(), DeltaError> {
    if id.is_empty() || id.len() > MAX_BASELINE_ID || id.contains('\0') {
        return Err(DeltaError::BaselineId);
    }
    let too_many = |_| DeltaError::OpCount { claimed: u64::MAX };
    let count = u32::try_from(next.len().div_ceil(BLOCK)).map_err(too_many)?;
    out.extend_from_slice(id.as_bytes());
    out.push(0);
    put_u32(out, count);
    let mut olds = base.chunks(BLOCK);
    let mut offset = 0;
    for new in next.chunks(BLOCK) {
        let old = olds.next().unwrap_or_default();
        let kind = match old.get(..new.len()) {
            Some(same) if same == new => COPY,
            _ if old.is_empty() => ADD,
            _ => MODIFY,
        };
        let length = u32::try_from(new.len()).unwrap_or(u32::MAX);
        out.push(kind);
        put_u64(out, offset);
        put_u64(out, u64::from(length));
        if kind != COPY {
            put_u32(out, length);
            out.extend_from_slice(new);
        }
        offset += u64::from(length);
    }
    Ok(())
}

/// What an op says, a piece at a time, in order and without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch<'a> {
    /// These bytes come next.
    Bytes(&'a [u8]),
    /// So many bytes come next, from the same offset of the baseline.
    Copy {
        /// In the content and in the baseline.
        at: u64,
        /// How many.
        bytes: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Count,
    Op,
    DataLength { length: u64 },
    Data { left: u64 },
    Done,
}

/// Reads an op list behind its baseline id, in pieces of any size; holds one op's head.
#[derive(Debug)]
pub struct DeltaReader {
    stage: Stage,
    head: Partial<OP_HEAD>,
    ops_left: u32,
    /// Of the content: what was made so far, and the most that may be.
    at: u64,
    most: u64,
    baseline_bytes: u64,
}

impl DeltaReader {
    /// For content of `most` bytes at most, over a baseline of `baseline_bytes`.
    pub fn new(most: u64, baseline_bytes: u64) -> Self {
        Self { stage: Stage::Count, head: Partial::new(), ops_left: 0, at: 0, most, baseline_bytes }
    }

    /// Bytes of content made so far.
    pub fn made(&self) -> u64 {
        self.at
    }

    /// Takes from the front of `bytes`. `None`: more are needed.
    ///
    /// # Errors
    /// They are no op list, leave a gap, or reach beyond baseline or limit.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Patch<'a>>, DeltaError> {
        loop {
            match self.stage {
                Stage::Count => {
                    let Some(field) = self.head.fill(4, bytes) else { return Ok(None) };
                    let count = Fields(field).u32().unwrap_or(0);
                    // Each op makes one byte at least.
                    if u64::from(count) > self.most {
                        return Err(DeltaError::OpCount { claimed: u64::from(count) });
                    }
                    self.ops_left = count;
                    self.next_op();
                }
                Stage::Op => {
                    let Some(field) = self.head.fill(OP_HEAD, bytes) else { return Ok(None) };
                    let mut fields = Fields(field);
                    let head = fields.u8().zip(fields.i64()).zip(fields.i64());
                    let Some(((kind, offset), length)) = head else { return Ok(None) };
                    if let Some(patch) = self.op(kind, offset, length)? {
                        return Ok(Some(patch));
                    }
                }
                Stage::DataLength { length } => {
                    let Some(field) = self.head.fill(4, bytes) else { return Ok(None) };
                    let data = Fields(field).u32().map_or(0, u64::from);
                    if data != length {
                        return Err(DeltaError::DataLength { at: self.at, claimed: length, data });
                    }
                    self.stage = Stage::Data { left: length };
                }
                Stage::Data { left } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    if here == 0 {
                        return Ok(None);
                    }
                    let (data, rest) = bytes.split_at_checked(here).unwrap_or((bytes, &[]));
                    *bytes = rest;
                    let here = u64::try_from(here).unwrap_or(left);
                    self.at += here;
                    self.stage = Stage::Data { left: left - here };
                    if left == here {
                        self.next_op();
                    }
                    return Ok(Some(Patch::Bytes(data)));
                }
                Stage::Done if bytes.is_empty() => return Ok(None),
                Stage::Done => return Err(DeltaError::Trailing { at: self.at }),
            }
        }
    }

    fn next_op(&mut self) {
        self.head.clear();
        self.stage = match self.ops_left.checked_sub(1) {
            Some(left) => {
                self.ops_left = left;
                Stage::Op
            }
            None => Stage::Done,
        };
    }

    fn op(&mut self, kind: u8, offset: i64, length: i64) -> Result<Option<Patch<'static>>, DeltaError> {
        let at = self.at;
        if u64::try_from(offset) != Ok(at) {
            return Err(DeltaError::Offset { at, claimed: offset });
        }
        let room = self.most.saturating_sub(at);
        let length = u64::try_from(length).ok().filter(|length| (1..=room).contains(length));
        let length = length.ok_or(DeltaError::Length { at })?;
        match kind {
            COPY => {
                if at + length > self.baseline_bytes {
                    return Err(DeltaError::BeyondBaseline { at, bytes: length, baseline: self.baseline_bytes });
                }
                self.at += length;
                self.next_op();
                Ok(Some(Patch::Copy { at, bytes: length }))
            }
            ADD | MODIFY => {
                self.head.clear();
                self.stage = Stage::DataLength { length };
                Ok(None)
            }
            kind => Err(DeltaError::Kind { at, kind }),
        }
    }

    /// The list must be over.
    ///
    /// # Errors
    /// It is cut short.
    pub fn finish(&self) -> Result<(), DeltaError> {
        if self.stage == Stage::Done { Ok(()) } else { Err(DeltaError::Short { at: self.at }) }
    }
}

/// An op list that cannot be applied, or made. `at` is the offset in the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// An id that cannot be written: ours, not the peer's.
    #[error("a baseline id has 1 to 256 bytes, none of them zero")]
    BaselineId,
    /// More ops than bytes of content.
    #[error("delta claims {claimed} ops, more than it may make bytes")]
    OpCount {
        /// The count found.
        claimed: u64,
    },
    /// A gap, an overlap, or a negative offset.
    #[error("delta, content byte {at}: the op stands at {claimed}")]
    Offset {
        /// Where the content has come to.
        at: u64,
        /// What the op says.
        claimed: i64,
    },
    /// A length that is not above zero, or reaches beyond the content.
    #[error("delta, content byte {at}: the op's length is impossible")]
    Length {
        /// Where.
        at: u64,
    },
    /// An op with two lengths.
    #[error("delta, content byte {at}: the op claims {claimed} bytes and carries {data}")]
    DataLength {
        /// Where.
        at: u64,
        /// By its length.
        claimed: u64,
        /// By its data length.
        data: u64,
    },
    /// A copy of what the baseline has not.
    #[error("delta, content byte {at}: copy of {bytes} bytes, the baseline has {baseline} in all")]
    BeyondBaseline {
        /// Where.
        at: u64,
        /// How many.
        bytes: u64,
        /// Bytes of the baseline.
        baseline: u64,
    },
    /// No such op.
    #[error("delta, content byte {at}: op {kind} is not known")]
    Kind {
        /// Where.
        at: u64,
        /// The number found.
        kind: u8,
    },
    /// Cut short.
    #[error("delta, content byte {at}: the list ends here, within or before an op")]
    Short {
        /// Where.
        at: u64,
    },
    /// Bytes after the last op.
    #[error("delta, content byte {at}: bytes after the last op")]
    Trailing {
        /// Where.
        at: u64,
    },
}
