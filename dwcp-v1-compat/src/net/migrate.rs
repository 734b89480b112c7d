//! Memory and disk images as v1 migrates them: one amst16 message each, stop and copy.
//!
//! ```text
//! memory   one packet of the whole image
//! disk     a list of blocks, each with a packet of its own
//! ```

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use dwcp_core::Guest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::TransferError;
use super::in_order::{InOrder, Reader};
use super::pages::{PageWriter, is_aligned, read_flat};
use super::receive::{Arrivals, ReceiveOptions, collect};
use super::send::{SendOptions, Sent, transmit};
use super::spool::Spool;
use super::tally::Direction;
use super::undo::Undo;
use crate::message::{Assurance, Received};
use crate::wire::blocks::{BlockError, BlockHeader, BlockReader, BlocksSeen, Part};
use crate::wire::limits::{MAX_AMST16_BYTES, MAX_PACKET_CONTENT};
use crate::wire::{
    ContentDecoder, ContentError, Expected, Framing, PACKET_HEADER_BYTES, PackError, Packer, Piece, Tier,
    most_packet_bytes,
};

/// Plain bytes that are read of a guest, or copied of a baseline, at a time.
const STEP: usize = 1 << 20;

/// How a guest is sent.
#[derive(Clone, Debug)]
pub struct MigrateOptions {
    /// How its message is. Migration speaks amst16.
    pub send: SendOptions,
    /// Which level it is compressed with.
    pub tier: Tier,
    /// Where the message is kept until it is sent, in a file without a name: as large as the compressed image.
    pub spool: PathBuf,
}

/// How a disk is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Bytes of a block, whole pages; both ends must be set to the same.
    pub block_bytes: u32,
    /// Whether blocks may be missing of what is received: those that are stay as they were.
    pub partial: bool,
}

/// What op lists of a peer refer to: an older image of the same guest, which both ends hold. The id of its memory is
/// `<vm>_memory`, that of block n of its disk `<vm>_disk_<n>`.
#[derive(Clone)]
pub struct Baseline {
    /// The guest's name in v1.
    pub vm: String,
    /// The image; it must not change meanwhile.
    pub image: Arc<dyn Guest>,
}

impl fmt::Debug for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Baseline").field("vm", &self.vm).finish_non_exhaustive()
    }
}

/// A disk image that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskReceived {
    /// Its message.
    pub received: Received,
    /// Blocks of the disk.
    pub blocks: u32,
    /// Those that came.
    pub came: u32,
}

/// Stops a guest and sends its memory to a v1 peer, in full: v1's own decoder does not apply deltas.
///
/// v1 acknowledges nothing, so this is no hand-over: after a success the guest stays paused, and who runs it is for the
/// caller to find out. After an error it runs here again. `connect` is called when the message is ready, as a v1 peer waits
/// for it 60 s at most.
///
/// # Errors
/// The memory is larger than 256 MiB or does not compress to less than 4 GiB, the guest has device state, or it could not
/// be sent.
///
/// Cancel safe: the guest runs here again, as soon as it can.
pub async fn send_memory<S, F, C>(
    guest: Arc<dyn Guest>,
    options: MigrateOptions,
    connect: C,
) -> Result<Sent, TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<Vec<S>, TransferError>> + Send + 'static,
    C: FnOnce() -> F + Send + 'static,
{
    let fits = |guest: &dyn Guest| match guest.layout().bytes() {
        content if content > MAX_PACKET_CONTENT => Err(PackError::TooLarge { content }.into()),
        _ => Ok(()),
    };
    send_stopped(guest, options, connect, fits, spool_memory).await
}

/// Stops a guest and sends its disk to a v1 peer, all of it. As [`send_memory`], but for a size of any number of blocks.
///
/// # Errors
/// As [`send_memory`].
///
/// Cancel safe: the guest runs here again, as soon as it can.
pub async fn send_disk<S, F, C>(
    guest: Arc<dyn Guest>,
    disk: DiskOptions,
    options: MigrateOptions,
    connect: C,
) -> Result<Sent, TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<Vec<S>, TransferError>> + Send + 'static,
    C: FnOnce() -> F + Send + 'static,
{
    let fits = move |guest: &dyn Guest| blocks_of(guest, disk.block_bytes, MOST_SENT_BLOCK).map(drop);
    send_stopped(guest, options, connect, fits, move |guest, options| spool_disk(guest, disk.block_bytes, options))
        .await
}

/// What does not fit is found before the guest is stopped, and is counted as all that ends a transfer.
async fn send_stopped<S, F, C, M>(
    guest: Arc<dyn Guest>,
    options: MigrateOptions,
    connect: C,
    fits: impl FnOnce(&dyn Guest) -> Result<(), TransferError> + Send + 'static,
    make: M,
) -> Result<Sent, TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<Vec<S>, TransferError>> + Send + 'static,
    C: FnOnce() -> F + Send + 'static,
    M: FnOnce(&dyn Guest, &MigrateOptions) -> Result<Spool, TransferError> + Send + 'static,
{
    let tally = options.send.tally.clone();
    on_own_thread(async move {
        let sent = async {
            migrates(options.send.framing)?;
            fits(guest.as_ref())?;
            guest.pause()?;
            // Until all is sent the guest is ours, whatever ends this.
            let paused = Undo::resume(&guest);
            let state = guest.save_devices()?;
            if !state.is_empty() {
                return Err(TransferError::DeviceState { bytes: state.len() });
            }
            let mut spool = make(guest.as_ref(), &options)?;
            let sent = transmit(connect().await?, &mut spool, &options.send).await?;
            paused.keep();
            Ok(sent)
        };
        tally.counting(Direction::Sent, sent, |sent| sent.bytes).await
    })
    .await
}

fn spool_memory(guest: &dyn Guest, options: &MigrateOptions) -> Result<Spool, TransferError> {
    let mut spool = Spool::new(&options.spool, MAX_AMST16_BYTES)?;
    let total = guest.layout().bytes();
    let mut packer = Packer::new()?;
    packer.begin(options.tier, total)?;
    spool.append(&[0; PACKET_HEADER_BYTES])?;
    let (mut plain, mut packed) = (vec![0; STEP], Vec::new());
    let mut at = 0;
    while at < total {
        let here = usize::try_from(total - at).unwrap_or(STEP).min(STEP);
        let part = plain.get_mut(..here).unwrap_or_default();
        read_flat(guest, at, part)?;
        packer.push(part, &mut packed)?;
        spool.append(&packed)?;
        packed.clear();
        at += u64::try_from(here).unwrap_or(0);
    }
    let header = packer.finish(options.tier, false, &mut packed)?;
    spool.append(&packed)?;
    packed.clear();
    header.encode(&mut packed);
    spool.overwrite(0, &packed)?;
    Ok(spool)
}

fn spool_disk(guest: &dyn Guest, block_bytes: u32, options: &MigrateOptions) -> Result<Spool, TransferError> {
    let mut spool = Spool::new(&options.spool, MAX_AMST16_BYTES)?;
    let (blocks, total) = (blocks_of(guest, block_bytes, MOST_SENT_BLOCK)?, guest.layout().bytes());
    let mut packer = Packer::new()?;
    let (mut plain, mut packet, mut head) =
        (vec![0; usize::try_from(block_bytes).unwrap_or(0)], Vec::new(), Vec::new());
    for id in 0..blocks {
        let at = u64::from(id) * u64::from(block_bytes);
        let here = usize::try_from(total - at).unwrap_or(plain.len()).min(plain.len());
        let part = plain.get_mut(..here).unwrap_or_default();
        read_flat(guest, at, part)?;
        packet.clear();
        packer.pack(options.tier, false, part, &mut packet)?;
        let too_large = |_| TransferError::Config("a packet of a block is longer than 4 GiB");
        head.clear();
        BlockHeader { id, packet_bytes: u32::try_from(packet.len()).map_err(too_large)? }.encode(&mut head);
        spool.append(&head)?;
        spool.append(&packet)?;
    }
    Ok(spool)
}

/// A block is held in memory when it is sent, plain and compressed.
const MOST_SENT_BLOCK: u64 = 4 << 20;

/// Blocks of a guest's disk.
fn blocks_of(guest: &dyn Guest, block_bytes: u32, most: u64) -> Result<u32, TransferError> {
    if !(4096..=most).contains(&u64::from(block_bytes)) || !block_bytes.is_multiple_of(4096) {
        return Err(TransferError::Config(
            "a block of a disk is a multiple of 4096 bytes, up to 4 MiB to send and 256 MiB to receive",
        ));
    }
    if !is_aligned(guest.layout()) {
        return Err(TransferError::Config("only the last region of a disk may end within a page"));
    }
    let blocks = guest.layout().bytes().div_ceil(u64::from(block_bytes));
    u32::try_from(blocks).map_err(|_| TransferError::Config("the disk has more than 2^32 blocks: take larger ones"))
}

/// Takes a memory image into a guest that is all zeros, and stages it. The caller lets it run, or discards it.
///
/// # Errors
/// What came is not this guest's memory; then the guest has been told to discard it.
///
/// Cancel safe: the guest is told to discard it.
pub async fn receive_memory<S>(
    arrivals: Arrivals<S>,
    guest: Arc<dyn Guest>,
    baseline: Option<Baseline>,
    options: ReceiveOptions,
) -> Result<Received, TransferError>
where
    S: AsyncRead + Unpin + Send + 'static,
{
    let reader = |guest| MemoryReader::new(guest, baseline);
    let took = take(arrivals, guest, reader, options, |reader: &mut MemoryReader| {
        reader.decoder.finish()?;
        reader.pages.flush()
    });
    Ok(took.await?.0)
}

/// Takes a disk image into a guest that is all zeros (or holds what blocks that are missing should be), and stages it. The
/// caller makes it visible, or discards it.
///
/// # Errors
/// What came is not this guest's disk; then the guest has been told to discard it.
///
/// Cancel safe: the guest is told to discard it.
pub async fn receive_disk<S>(
    arrivals: Arrivals<S>,
    guest: Arc<dyn Guest>,
    disk: DiskOptions,
    baseline: Option<Baseline>,
    options: ReceiveOptions,
) -> Result<DiskReceived, TransferError>
where
    S: AsyncRead + Unpin + Send + 'static,
{
    let reader = move |guest| DiskReader::new(guest, disk, baseline);
    let took = take(arrivals, guest, reader, options, move |reader: &mut DiskReader| {
        reader.blocks.finish()?;
        let missing = reader.count - reader.seen.count();
        if missing > 0 && !disk.partial {
            return Err(TransferError::MissingBlocks { missing, blocks: reader.count });
        }
        Ok(())
    });
    let (received, reader) = took.await?;
    Ok(DiskReceived { received, blocks: reader.count, came: reader.seen.count() })
}

async fn take<S, R>(
    arrivals: Arrivals<S>,
    guest: Arc<dyn Guest>,
    reader: impl FnOnce(Arc<dyn Guest>) -> Result<R, TransferError> + Send + 'static,
    options: ReceiveOptions,
    finish: impl FnOnce(&mut R) -> Result<(), TransferError> + Send + 'static,
) -> Result<(Received, R), TransferError>
where
    S: AsyncRead + Unpin + Send + 'static,
    R: Reader + 'static,
{
    let (received, reader, staged) = on_own_thread(async move {
        let taken = async {
            let staged = Undo::discard(&guest);
            migrates(options.shape.framing())?;
            let mut landing = InOrder::new(reader(Arc::clone(&guest))?);
            let received = collect(arrivals, &mut landing, &options).await?;
            finish(&mut landing.reader)?;
            guest.stage()?;
            Ok((Received { assurance: Assurance::Checksums, ..received }, landing.reader, staged))
        };
        options.tally.counting(Direction::Received, taken, |(received, _, _)| received.bytes).await
    })
    .await?;
    // Whoever was gone while it was staged does not come here, and so it is discarded.
    staged.keep();
    Ok((received, reader))
}

fn migrates(framing: Framing) -> Result<(), TransferError> {
    match framing {
        Framing::Amst16 => Ok(()),
        Framing::Mst8 => Err(TransferError::Config("v1 migrates over amst16 only")),
    }
}

/// Drives a future where it may block: compression, guests and disks do.
async fn on_own_thread<T: Send + 'static>(
    work: impl Future<Output = Result<T, TransferError>> + Send + 'static,
) -> Result<T, TransferError> {
    let runtime = Handle::current();
    // Dropped with this future: then the work is dropped, too, where it waits.
    let (_wanted, unwanted) = oneshot::channel::<()>();
    let thread = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            tokio::select! {
                done = work => done,
                _ = unwanted => Err(TransferError::Cancelled),
            }
        })
    });
    thread.await.unwrap_or(Err(TransferError::Cancelled))
}

/// Copies what a piece says to where the guest's next bytes are.
fn apply(
    piece: Piece<'_>,
    start: u64,
    pages: &mut PageWriter,
    baseline: Option<&Baseline>,
    scratch: &mut Vec<u8>,
) -> Result<(), TransferError> {
    let (mut at, mut left) = match piece {
        Piece::Bytes(bytes) => return pages.append(bytes),
        Piece::Copy { at, bytes } => (start + at, bytes),
    };
    let baseline = baseline.ok_or(TransferError::Config("a copy of a baseline that is not held"))?;
    while left > 0 {
        let here = usize::try_from(left).unwrap_or(STEP).min(STEP);
        scratch.resize(here, 0);
        read_flat(baseline.image.as_ref(), at, scratch)?;
        pages.append(scratch)?;
        let here = u64::try_from(here).unwrap_or(left);
        at += here;
        left -= here;
    }
    Ok(())
}

struct MemoryReader {
    decoder: ContentDecoder,
    pages: PageWriter,
    baseline: Option<Baseline>,
    bytes: u64,
    scratch: Vec<u8>,
}

impl MemoryReader {
    fn new(guest: Arc<dyn Guest>, baseline: Option<Baseline>) -> Result<Self, TransferError> {
        let bytes = guest.layout().bytes();
        let decoder = ContentDecoder::new(bytes).map_err(ContentError::from)?;
        Ok(Self { decoder, pages: PageWriter::new(guest), baseline, bytes, scratch: Vec::new() })
    }
}

impl Reader for MemoryReader {
    fn begin(&mut self, bytes: u64) -> Result<(), TransferError> {
        let baseline = self.baseline.as_ref();
        let baseline = baseline.map(|held| (format!("{}_memory", held.vm), held.image.layout().bytes()));
        Ok(self.decoder.begin(bytes, Expected { bytes: Some(self.bytes), baseline })?)
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), TransferError> {
        while let Some(piece) = self.decoder.next(&mut bytes)? {
            apply(piece, 0, &mut self.pages, self.baseline.as_ref(), &mut self.scratch)?;
        }
        Ok(())
    }
}

struct DiskReader {
    blocks: BlockReader,
    seen: BlocksSeen,
    count: u32,
    block_bytes: u64,
    total: u64,
    decoder: ContentDecoder,
    pages: PageWriter,
    baseline: Option<Baseline>,
    /// Of the block that is read.
    start: u64,
    scratch: Vec<u8>,
    /// Bytes of the message.
    at: u64,
}

impl DiskReader {
    fn new(guest: Arc<dyn Guest>, disk: DiskOptions, baseline: Option<Baseline>) -> Result<Self, TransferError> {
        let count = blocks_of(guest.as_ref(), disk.block_bytes, MAX_PACKET_CONTENT)?;
        let block_bytes = u64::from(disk.block_bytes);
        let most = u32::try_from(most_packet_bytes(block_bytes)).unwrap_or(u32::MAX);
        Ok(Self {
            blocks: BlockReader::new(count, most),
            seen: BlocksSeen::new(count),
            count,
            block_bytes,
            total: guest.layout().bytes(),
            decoder: ContentDecoder::new(block_bytes).map_err(ContentError::from)?,
            pages: PageWriter::new(guest),
            baseline,
            start: 0,
            scratch: Vec::new(),
            at: 0,
        })
    }

    fn begin_block(&mut self, header: BlockHeader) -> Result<(), TransferError> {
        let id = header.id;
        if !self.seen.insert(id) {
            return Err(BlockError::Again { at: self.at, id }.into());
        }
        self.start = u64::from(id) * self.block_bytes;
        self.pages.start(self.start);
        let held = self.baseline.as_ref().map(|held| {
            let bytes = held.image.layout().bytes().saturating_sub(self.start).min(self.block_bytes);
            (format!("{}_disk_{id}", held.vm), bytes)
        });
        let bytes = Some((self.total - self.start).min(self.block_bytes));
        Ok(self.decoder.begin(u64::from(header.packet_bytes), Expected { bytes, baseline: held })?)
    }
}

impl Reader for DiskReader {
    fn begin(&mut self, _bytes: u64) -> Result<(), TransferError> {
        Ok(())
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), TransferError> {
        let all = bytes.len();
        let start = self.at;
        while let Some(part) = self.blocks.next(&mut bytes)? {
            self.at = start + u64::try_from(all - bytes.len()).unwrap_or(0);
            match part {
                Part::Begin(header) => self.begin_block(header)?,
                Part::Packet(mut packet) => {
                    while let Some(piece) = self.decoder.next(&mut packet)? {
                        apply(piece, self.start, &mut self.pages, self.baseline.as_ref(), &mut self.scratch)?;
                    }
                }
                Part::End => {
                    self.decoder.finish()?;
                    self.pages.flush()?;
                }
            }
        }
        self.at = start + u64::try_from(all).unwrap_or(0);
        Ok(())
    }
}
