use std::io;
use std::time::Duration;

use dwcp_core::GuestError;

use crate::message::{Defect, Refusal};
use crate::wire::blocks::BlockError;
use crate::wire::{ContentError, PackError};

/// Why a v1 transfer failed. Nothing is switched over then: what had come is to be thrown away, and a guest runs at its
/// source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// What came is no whole message: the peer's doing, or the link's.
    #[error(transparent)]
    Defect(#[from] Defect),
    /// What came is a message, but not what was expected in it: the peer's doing.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The same of a disk image.
    #[error(transparent)]
    Blocks(#[from] BlockError),
    /// v1 cannot carry it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// v1 cannot carry it in one packet.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// v1 has no place for the state of devices.
    #[error(
        "the guest has {bytes} bytes of device state, and v1 has no place for them; use v3, or send its disk and memory shut down"
    )]
    DeviceState {
        /// How many.
        bytes: usize,
    },
    /// Blocks of a disk that never came.
    #[error("{missing} of {blocks} blocks of the disk did not come; the image is not whole")]
    MissingBlocks {
        /// How many.
        missing: u32,
        /// Of how many.
        blocks: u32,
    },
    /// A connection failed while we sent.
    #[error("v1 connection {connection}: {source}; v1 cannot say what of the message arrived, send all of it again")]
    Lost {
        /// Which.
        connection: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The peer takes nothing any more.
    #[error("the v1 peer took nothing for {} s; it may be stuck or its disk full", after.as_secs())]
    Stalled {
        /// The deadline.
        after: Duration,
    },
    /// The peer takes so little that it would hold the transfer for ever.
    #[error(
        "the v1 peer took only {took} bytes in {} s, {least} are the least; {left} bytes are still to be sent; look at its \
         disk and at the link",
        after.as_secs()
    )]
    Slow {
        /// The deadline.
        after: Duration,
        /// Bytes that it took within that.
        took: u64,
        /// Bytes that it has to take.
        least: u64,
        /// Bytes of the message that were not taken yet.
        left: u64,
    },
    /// A connection could not be made: the peer has none of the message.
    #[error("cannot connect with {peer}: {source}")]
    Connect {
        /// Who.
        peer: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connections could not be made in time.
    #[error("{made} of {wanted} v1 connections with {peer} within {} s; is it running, and set to as many?", within.as_secs())]
    Unconnected {
        /// Who.
        peer: String,
        /// Connections made.
        made: usize,
        /// Connections wanted.
        wanted: u16,
        /// The deadline.
        within: Duration,
    },
    /// A setting that cannot work.
    #[error("{0}")]
    Config(&'static str),
    /// The guest, its memory or its file failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// This machine failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl TransferError {
    /// An [`TransferError::Io`] while doing `what`.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}
