//! Every bound on what a v1 peer says. v1 has none of its own but the decoder's 256 MiB; these are ours.

/// Bytes of an amst16 message: its offset and total are 32 bits, and wrap without a word above.
pub const MAX_AMST16_BYTES: u64 = 0xffff_ffff;

/// Chunks of an amst16 message: 4 GiB in v1's smallest configured chunk of 4 KiB. The table costs 256 KiB.
pub const MAX_AMST16_CHUNKS: u32 = 1 << 20;

/// Chunks of an mst8 message: 8 TiB in v1's default chunk of 256 KiB. The table costs 8 MiB at most, and its size follows
/// from our own configuration. A first byte of a v1 stream is therefore 0 or 1.
pub const MAX_MST8_CHUNKS: u32 = 1 << 25;

/// Bytes of a chunk: v1 configures at most 1 MiB for amst16 and a few MiB for mst8. What we hold of a chunk does not depend
/// on it; the bound tells a length from a misread one.
pub const MAX_CHUNK_BYTES: u32 = 16 << 20;

/// Connections of a message, as v1 configures at most.
pub const MAX_CONNECTIONS: u16 = 256;

/// Connections that one message may use up, re-dialled ones included: all of them sixteen times.
pub const MAX_DIALS: u32 = 16 * 256;

/// New bytes of a message that must come, or be taken, or its rest, each time that the deadline of
/// [`Deadlines::progress`](crate::message::Deadlines::progress) passes, or that of the sending side. 1 MiB in 120 s is
/// 70 kbit/s over all connections: sixteen of them that bring one chunk of 64 KiB every two minutes. Nobody migrates over
/// less, and a message of 4 GiB is over in six days.
pub const MIN_PROGRESS: u64 = 1 << 20;

/// Plain bytes that the decoder of a v1 peer takes from one packet. No packet that decodes to more is sent.
pub const MAX_PACKET_CONTENT: u64 = 256 << 20;

/// Plain bytes that are taken from one packet, unless configured otherwise.
pub const DEFAULT_CONTENT: u64 = MAX_PACKET_CONTENT;

/// The window of a zstd frame, as a power of two: 32 MiB, the largest that v1's encoder makes at any level. It is reserved
/// when a frame header asks for it.
pub const MAX_WINDOW_LOG: u32 = 25;

/// Bytes of a baseline's id, such as `vm-17_disk_0`.
pub const MAX_BASELINE_ID: usize = 256;

/// Bytes that are held while chunks arrive ahead of their turn, for content that is decoded in order.
pub const REORDER_WINDOW: u64 = 16 << 20;
