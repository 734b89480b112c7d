use std::time::Duration;

use super::ConnectionId;

/// What is wrong with a message that comes in. The peer or the link is to blame; each ends the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// A chunk that the message cannot have: a misread header, or a message of another length.
    #[error("{connection}, byte {at}: chunk {id}, the message has {chunks}")]
    Id {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection at which its header starts.
        at: u64,
        /// The id found.
        id: u32,
        /// Chunks of the message.
        chunks: u32,
    },
    /// A length that this chunk cannot have. A v1 receiver would reserve whatever stands here, or lose bytes without a
    /// word when the chunk sizes of both ends differ.
    #[error(
        "{connection}, byte {at}: chunk {id} with {length} bytes, it must have {expected}; are the chunk sizes of both ends the same?"
    )]
    Length {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection at which its header starts.
        at: u64,
        /// The chunk.
        id: u32,
        /// The length found.
        length: u32,
        /// What it must be, or the most that it may be.
        expected: u32,
    },
    /// A chunk that claims to lie where it cannot.
    #[error("{connection}, byte {at}: chunk {id} at offset {offset}, which cannot be")]
    Offset {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection at which its header starts.
        at: u64,
        /// The chunk.
        id: u32,
        /// The offset found.
        offset: u32,
    },
    /// Another total than in the headers before: two messages at once from one address, or a misread header.
    #[error("{connection}, byte {at}: a message of {total} bytes, after headers of one with {before}")]
    MixedTotals {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection at which its header starts.
        at: u64,
        /// The total found.
        total: u32,
        /// The total before.
        before: u64,
    },
    /// The sender's 32-bit offset or total ran over.
    #[error(
        "{connection}, byte {at}: the message is larger than 4 GiB - 1, where amst16 counts from zero again; send it \
         with v3 or in parts"
    )]
    Wrapped {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection at which the header starts.
        at: u64,
    },
    /// More than is taken here.
    #[error("{connection}, byte {at}: a message of {total} bytes, at most {limit} are taken here")]
    TooLarge {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection at which the header starts.
        at: u64,
        /// The total found.
        total: u64,
        /// Our limit.
        limit: u64,
    },
    /// More chunks than the table may have: very small ones.
    #[error(
        "{connection}, byte {at}: {total} bytes in chunks of {chunk_bytes}, more than {limit} chunks are not taken"
    )]
    TooManyChunks {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection at which the header starts.
        at: u64,
        /// Bytes of the message.
        total: u64,
        /// Bytes of a chunk.
        chunk_bytes: u32,
        /// Our limit.
        limit: u32,
    },
    /// A chunk came twice with different bytes, or so that nobody can say whether they differ. v1 keeps the last one; who
    /// that is depends on a race, so either may be the right one and none is kept.
    #[error("{connection}, byte {at}: chunk {id} came already, and these are not known to be the same bytes")]
    Duplicate {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection.
        at: u64,
        /// The chunk.
        id: u32,
    },
    /// More bytes came again than the message has.
    #[error("{connection}, byte {at}: more bytes came twice than the message has")]
    Flood {
        /// Where it came.
        connection: ConnectionId,
        /// Byte of the connection.
        at: u64,
    },
    /// Closed within a header or a chunk.
    #[error("{connection}, byte {at}: closed within a {part}, {missing} bytes before its end")]
    Torn {
        /// Which.
        connection: ConnectionId,
        /// Byte of the connection at which it ends.
        at: u64,
        /// "header" or "chunk".
        part: &'static str,
        /// What is missing.
        missing: u64,
    },
    /// All connections are closed, and there are holes.
    #[error("{chunks} chunks of the message never came, the first is {first}; {bytes} bytes are missing")]
    Missing {
        /// The first of them.
        first: u32,
        /// How many.
        chunks: u32,
        /// Their bytes.
        bytes: u64,
    },
    /// Nobody said anything for too long.
    #[error("nothing came for {} s, and {missing} bytes of the message are missing", after.as_secs())]
    Silent {
        /// The deadline.
        after: Duration,
        /// Bytes that are missing, as far as that is known.
        missing: u64,
    },
    /// Bytes came, but so few that it would never end.
    #[error(
        "only {came} new bytes came in {} s, and {missing} bytes of the message are missing; a v1 peer must bring {least} in \
         that time: its link or its disk is stuck, or it only holds the place",
        after.as_secs()
    )]
    Slow {
        /// The deadline.
        after: Duration,
        /// New bytes that came.
        came: u64,
        /// How many must.
        least: u64,
        /// Bytes that are missing, as far as that is known.
        missing: u64,
    },
    /// The peer sends what is far ahead and keeps what is next.
    #[error("chunk {id} did not come for {} s, though chunks came that lie far behind it", after.as_secs())]
    HeldBack {
        /// The chunk.
        id: u32,
        /// The deadline.
        after: Duration,
    },
    /// Another connection than the message may have.
    #[error("{connection}: one more connection than the {limit} that a message may have")]
    TooManyConnections {
        /// Which.
        connection: ConnectionId,
        /// The limit.
        limit: u32,
    },
}

/// The defects without their details, to count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is described at the defect of the same name")]
pub enum DefectKind {
    Id,
    Length,
    Offset,
    MixedTotals,
    Wrapped,
    TooLarge,
    TooManyChunks,
    Duplicate,
    Flood,
    Torn,
    Missing,
    Silent,
    Slow,
    HeldBack,
    TooManyConnections,
}

impl DefectKind {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 15] = [
        Self::Id,
        Self::Length,
        Self::Offset,
        Self::MixedTotals,
        Self::Wrapped,
        Self::TooLarge,
        Self::TooManyChunks,
        Self::Duplicate,
        Self::Flood,
        Self::Torn,
        Self::Missing,
        Self::Silent,
        Self::Slow,
        Self::HeldBack,
        Self::TooManyConnections,
    ];

    /// A name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Length => "length",
            Self::Offset => "offset",
            Self::MixedTotals => "mixed_totals",
            Self::Wrapped => "wrapped",
            Self::TooLarge => "too_large",
            Self::TooManyChunks => "too_many_chunks",
            Self::Duplicate => "duplicate",
            Self::Flood => "flood",
            Self::Torn => "torn",
            Self::Missing => "missing",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::HeldBack => "held_back",
            Self::TooManyConnections => "too_many_connections",
        }
    }
}

impl Defect {
    /// Its kind.
    pub const fn kind(&self) -> DefectKind {
        match self {
            Self::Id { .. } => DefectKind::Id,
            Self::Length { .. } => DefectKind::Length,
            Self::Offset { .. } => DefectKind::Offset,
            Self::MixedTotals { .. } => DefectKind::MixedTotals,
            Self::Wrapped { .. } => DefectKind::Wrapped,
            Self::TooLarge { .. } => DefectKind::TooLarge,
            Self::TooManyChunks { .. } => DefectKind::TooManyChunks,
            Self::Duplicate { .. } => DefectKind::Duplicate,
            Self::Flood { .. } => DefectKind::Flood,
            Self::Torn { .. } => DefectKind::Torn,
            Self::Missing { .. } => DefectKind::Missing,
            Self::Silent { .. } => DefectKind::Silent,
            Self::Slow { .. } => DefectKind::Slow,
            Self::HeldBack { .. } => DefectKind::HeldBack,
            Self::TooManyConnections { .. } => DefectKind::TooManyConnections,
        }
    }
}

/// How often each defect was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DefectCounts([u64; DefectKind::ALL.len()]);

impl DefectCounts {
    /// Counts so many.
    pub fn add(&mut self, kind: DefectKind, times: u64) {
        for (count, known) in self.0.iter_mut().zip(DefectKind::ALL) {
            *count += times * u64::from(known == kind);
        }
    }

    /// Each kind with its count.
    pub fn all(&self) -> impl Iterator<Item = (DefectKind, u64)> + '_ {
        DefectKind::ALL.into_iter().zip(self.0)
    }

    /// How often this one.
    pub fn of(&self, kind: DefectKind) -> u64 {
        self.all().filter(|(known, _)| *known == kind).map(|(_, count)| count).sum()
    }
}
