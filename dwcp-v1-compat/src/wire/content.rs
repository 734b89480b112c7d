//! What a packet stands for: its plain bytes, or what an op list makes of a baseline.

use super::delta::{DeltaError, DeltaReader, Patch};
use super::packet::{PacketError, Unpacker};

/// What the receiver knows of a packet's content before it comes. None of it is the peer's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Bytes of the content, where that is known. A packet with delta flag 1 over full data is taken only then: nothing
    /// else tells it from an op list over some other baseline.
    pub bytes: Option<u64>,
    /// The baseline that is held here: its id, and how many bytes it has.
    pub baseline: Option<(String, u64)>,
}

/// The next bytes of the content, in order and without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// These.
    Bytes(&'a [u8]),
    /// So many of the baseline, from the same offset. At most as many as the content may have, so copy them in parts.
    Copy {
        /// In the content and in the baseline.
        at: u64,
        /// How many.
        bytes: u64,
    },
}

#[derive(Debug)]
enum Form {
    /// The packet's header, or the first bytes of a content with delta flag 1, are still to come.
    Unknown,
    Full,
    /// Over the expected baseline.
    Delta(DeltaReader),
}

/// Decodes packets that arrive in pieces of any size.
#[derive(Debug)]
pub struct ContentDecoder {
    unpacker: Unpacker,
    most: u64,
    expected: Expected,
    form: Form,
    made: u64,
    /// Of the unpacker's plain bytes: those of the piece that was told last.
    told: usize,
}

impl ContentDecoder {
    /// For contents of `most` bytes at most.
    ///
    /// # Errors
    /// [`PacketError::OutOfMemory`].
    pub fn new(most: u64) -> Result<Self, PacketError> {
        let (expected, form) = (Expected::default(), Form::Unknown);
        Ok(Self { unpacker: Unpacker::new(op_list_bytes(most))?, most, expected, form, made: 0, told: 0 })
    }

    /// Begins a packet of so many bytes.
    ///
    /// # Errors
    /// No packet has so few or so many.
    pub fn begin(&mut self, packet_bytes: u64, expected: Expected) -> Result<(), ContentError> {
        self.unpacker.begin(packet_bytes)?;
        self.form = Form::Unknown;
        self.expected = expected;
        (self.made, self.told) = (0, 0);
        Ok(())
    }

    /// Takes from the front of `packed`. `None`: all of it is taken, and more is needed unless the packet is over.
    ///
    /// # Errors
    /// The bytes are no packet, or not one of the content that is expected.
    pub fn next<'a>(&'a mut self, packed: &mut &[u8]) -> Result<Option<Piece<'a>>, ContentError> {
        self.unpacker.consume(std::mem::take(&mut self.told));
        loop {
            match self.look()? {
                Some(Found::Bytes(range)) => {
                    self.told = range.end;
                    return Ok(Some(Piece::Bytes(self.unpacker.plain().get(range).unwrap_or_default())));
                }
                Some(Found::Copy { at, bytes }) => return Ok(Some(Piece::Copy { at, bytes })),
                None => {}
            }
            let before = packed.len();
            let more = self.unpacker.fill(packed)?;
            if !more && packed.len() == before {
                return Ok(None);
            }
        }
    }

    /// What the plain bytes that are ready say next.
    fn look(&mut self) -> Result<Option<Found>, ContentError> {
        if matches!(self.form, Form::Unknown) {
            self.decide()?;
        }
        let plain = self.unpacker.plain();
        match &mut self.form {
            Form::Unknown => Ok(None),
            Form::Full if plain.is_empty() => Ok(None),
            Form::Full => {
                self.made += u64::try_from(plain.len()).unwrap_or(u64::MAX);
                Ok(Some(Found::Bytes(0..plain.len())))
            }
            Form::Delta(reader) => {
                let mut rest = plain;
                let patch = reader.next(&mut rest)?;
                let used = plain.len() - rest.len();
                self.made = reader.made();
                match patch {
                    Some(Patch::Bytes(bytes)) => Ok(Some(Found::Bytes(used - bytes.len()..used))),
                    Some(Patch::Copy { at, bytes }) => {
                        self.unpacker.consume(used);
                        Ok(Some(Found::Copy { at, bytes }))
                    }
                    None => {
                        self.unpacker.consume(used);
                        Ok(None)
                    }
                }
            }
        }
    }

    /// v1 sets delta flag 1 over op lists and over full data alike, so the bytes themselves must tell. An op list names our
    /// baseline in front and has another length than the content; full data has exactly that length. What could be both
    /// is refused: a guess would be a wrong image.
    fn decide(&mut self) -> Result<(), ContentError> {
        let (Some(header), Some(bytes)) = (self.unpacker.header(), self.unpacker.content_bytes()) else {
            return Ok(());
        };
        let fits = self.expected.bytes == Some(bytes);
        if header.delta {
            let named = match &self.expected.baseline {
                None => Some(false),
                Some((id, _)) => begins_with(self.unpacker.plain(), id, self.unpacker.is_whole()),
            };
            match (named, &self.expected.baseline) {
                (None, _) => return Ok(()),
                (Some(true), _) if fits => return Err(ContentError::Ambiguous { bytes }),
                (Some(true), Some((id, baseline_bytes))) => {
                    let reader = DeltaReader::new(self.expected.bytes.unwrap_or(self.most), *baseline_bytes);
                    self.unpacker.consume(id.len() + 1);
                    self.form = Form::Delta(reader);
                    return Ok(());
                }
                _ if !fits => return Err(ContentError::OtherBaseline { bytes }),
                _ => {}
            }
        }
        if bytes > self.most {
            return Err(PacketError::Content { content: bytes, limit: self.most }.into());
        }
        if let Some(expected) = self.expected.bytes
            && !fits
        {
            return Err(ContentError::Length { made: bytes, expected });
        }
        self.form = Form::Full;
        Ok(())
    }

    /// The packet must be over, and its content whole. Tells how many bytes that is.
    ///
    /// # Errors
    /// It is cut short, or made another length than is expected.
    pub fn finish(&mut self) -> Result<u64, ContentError> {
        self.unpacker.consume(std::mem::take(&mut self.told));
        self.unpacker.finish()?;
        if let Form::Delta(reader) = &self.form {
            reader.finish()?;
        }
        match self.expected.bytes {
            Some(expected) if expected != self.made => Err(ContentError::Length { made: self.made, expected }),
            _ => Ok(self.made),
        }
    }
}

enum Found {
    /// Of the unpacker's plain bytes.
    Bytes(std::ops::Range<usize>),
    Copy {
        at: u64,
        bytes: u64,
    },
}

/// Whether an op list over this baseline begins here. `None`: too few bytes have come to say.
fn begins_with(plain: &[u8], id: &str, whole: bool) -> Option<bool> {
    let mut wanted = id.bytes().chain([0]);
    let same = plain.iter().zip(wanted.by_ref()).all(|(have, want)| *have == want);
    let enough = plain.len() > id.len();
    if !same {
        Some(false)
    } else if enough {
        Some(true)
    } else {
        whole.then_some(false)
    }
}

/// The longest op list that makes so many bytes: each block of its own, and the baseline's id.
fn op_list_bytes(content: u64) -> u64 {
    content.saturating_add(content / 4096 * 21).saturating_add(1024)
}

/// A packet that is not the content which is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// Not a packet.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// Not an op list.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// Delta flag 1, and neither our baseline nor the length of full data.
    #[error(
        "packet with delta flag 1 and {bytes} bytes of content: neither an op list over a baseline that is held here \
         nor as long as the full data; make the peer send it in full"
    )]
    OtherBaseline {
        /// Bytes in the frame.
        bytes: u64,
    },
    /// Delta flag 1, our baseline's name in front, and the length of full data.
    #[error(
        "packet with delta flag 1 and {bytes} bytes of content: it may be an op list or full data, and a guess may be \
         wrong; make the peer send it without a delta"
    )]
    Ambiguous {
        /// Bytes in the frame.
        bytes: u64,
    },
    /// Another length.
    #[error("content of {made} bytes, {expected} are expected")]
    Length {
        /// Bytes made.
        made: u64,
        /// Bytes expected.
        expected: u64,
    },
}
