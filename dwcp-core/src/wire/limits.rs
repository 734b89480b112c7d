//! Every bound of the wire, each with its reason. A peer may narrow what we grant, never widen it.

use crate::extent::{MAX_EXTENT_PAGES, PAGE_BYTES};

/// Body bytes of any frame but an extent: one chunk of device state and its header. Control frames
/// are otherwise below 1 KiB, the offer below 10 KiB.
pub const MAX_CONTROL_BYTES: usize = DEVICE_STATE_CHUNK + 64;

/// Body bytes of a frame before the peer is known: a hello is at most 116 bytes, and an unauthenticated
/// peer is worth no more memory.
pub const MAX_HANDSHAKE_BYTES: usize = 512;

/// Bytes of device state in one frame: large enough that 64 MiB take 256 frames, small enough that
/// lane 0 never holds a large buffer.
pub const DEVICE_STATE_CHUNK: usize = 256 * 1024;

/// Device state in all: a QEMU machine has about 0.1 to 2 MiB, with vGPU tens. It is held in memory
/// at the sink until RUN, hence a bound.
pub const MAX_DEVICE_STATE: u64 = 64 * 1024 * 1024;

/// Bytes of an extent's run list: 256 runs of at most 5 + 2 bytes.
pub const MAX_RUN_LIST_BYTES: usize = MAX_EXTENT_PAGES * 7;

/// Bytes that an encoded extent needs beyond its plain pages in the worst case (all raw): run list,
/// head, block head.
pub const EXTENT_OVERHEAD: usize = super::EXTENT_HEAD_MAX + MAX_RUN_LIST_BYTES + 2048;

/// Body bytes of an extent frame.
pub const MAX_EXTENT_BYTES: usize = MAX_EXTENT_PAGES * PAGE_BYTES + EXTENT_OVERHEAD;

/// Bulk lanes open at a time in one session: past 16 connections no measured link gained, and each
/// costs the sink about 3 MiB.
pub const MAX_LANES: u16 = 64;

/// Lane ids that one session may use up, re-made lanes included.
pub const MAX_LANE_IDS: u16 = 4096;

/// Bytes of a transfer's name.
pub const MAX_NAME_BYTES: usize = 64;

/// Dictionaries that an OFFER names: an encoder uses one; more than a handful only cost the sink a look-up each.
pub const MAX_OFFERED_DICTIONARIES: usize = 4;

/// Baselines that an OFFER names: the sink takes one, and looks each up in its store.
pub const MAX_OFFERED_BASELINES: usize = 4;

/// Bytes of the text in an error or abort frame: one sentence.
pub const MAX_TEXT_BYTES: usize = 256;

/// Leaves in one HAVE: 64 KiB of body tell of 8 MiB of pages.
pub const MAX_HAVE_LEAVES: usize = 2048;

/// Extents of one message of a lane in version 1's framing. Such a lane waits for the acknowledgement of each message,
/// so a message should be worth a round trip; and both ends hold it whole.
pub const MAX_MESSAGE_EXTENTS: u16 = 8;

/// Bytes of one message: what its extents have in plain, and a sixteenth and 64 KiB for heads.
pub const MAX_MESSAGE_BYTES: u32 = 8 * 1024 * 1024 / 16 * 17 + 65_536;

/// Digests in one HANDOVER: 128 KiB of body tell where, within 1/4096 of the guest, both ends differ.
pub const MAX_HANDOVER_NODES: usize = 4096;

/// Lanes that one acknowledgement names.
pub const MAX_ACK_LANES: usize = 64;
