//! Campaigns of damaged bytes: whatever is refused is refused by a typed error, and nothing damaged is applied.
//!
//! ```text
//!   specimen x damage ──> the decoders that read a peer's bytes ──> refused (counted, by class)
//!                                      │ a sound frame all the same
//!                                      v
//!                               a machine that expects something else ──> a violation (counted, by class)
//! ```
//!
//! A class is a kind of frame or block and a kind of damage. Damage that leaves a sound frame with which nothing is
//! wrong is no malformed input, and is not counted as one.

use std::collections::BTreeMap;
use std::sync::Arc;

use dwcp_core::guest::OldPages;
use dwcp_core::session::verify::{ExtentCheck, Workbench};
use dwcp_core::session::{
    Input, Leaves, Machine, Output, Owner, SessionError, Sink, SinkConfig, Source, SourceConfig, Time,
};
use dwcp_core::wire::limits::{MAX_CONTROL_BYTES, MAX_EXTENT_BYTES};
use dwcp_core::wire::{Digest, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameType};

use dwcp_core::{GuestError, Layout, RegionId};

use crate::PEER;
use crate::rng::Rng;
use crate::specimens::{self, EPOCH, LANE, PAGES_OF_BASELINE, Parcel};

/// What came of a campaign.
#[derive(Debug, Default)]
pub struct Tally {
    /// Inputs that were refused by a typed error, by class.
    pub refused: BTreeMap<String, u64>,
    /// Inputs that were sound all the same, or only the begin of something.
    pub sound: u64,
}

impl Tally {
    /// Inputs that were refused.
    pub fn inputs(&self) -> u64 {
        self.refused.values().sum()
    }

    fn count(&mut self, class: Option<String>) {
        match class {
            Some(class) => *self.refused.entry(class).or_default() += 1,
            None => self.sound += 1,
        }
    }
}

/// Until so many inputs were refused.
///
/// # Panics
/// A damaged input was applied, or a panic of what read it.
pub fn malformed(inputs: u64, seed: u64) -> Tally {
    let (frames, parcels) = (specimens::frames(), specimens::parcels());
    let (mut rng, mut tally, mut refused) = (Rng::new(seed), Tally::default(), 0);
    let mut lane = Lane::new();
    while refused < inputs {
        let damage = rng.pick(&DAMAGES);
        let class = if rng.percent(50) {
            let (name, frame) = &frames[rng.below(frames.len() as u64) as usize];
            damaged_frame(name, frame, damage, &mut rng)
        } else {
            let parcel = &parcels[rng.below(parcels.len() as u64) as usize];
            let sound = parcel.frame(0);
            let mut bytes = sound.clone();
            (damage.1)(&mut bytes, &mut rng);
            let refused = bytes != sound && lane.refuses(&bytes, parcel);
            refused.then(|| format!("extent {}: {}", parcel.name, damage.0))
        };
        refused += u64::from(class.is_some());
        tally.count(class);
    }
    tally
}

type Damage = (&'static str, fn(&mut Vec<u8>, &mut Rng));

const DAMAGES: [Damage; 10] = [
    ("cut short", |bytes, rng| {
        bytes.truncate(FRAME_HEADER_BYTES + rng.below((bytes.len() - FRAME_HEADER_BYTES).max(1) as u64) as usize);
        set_length(bytes);
    }),
    ("longer", |bytes, rng| {
        for _ in 0..rng.between(1, 8) {
            bytes.push(rng.word() as u8);
        }
        set_length(bytes);
    }),
    ("another length", |bytes, rng| {
        let length = rng.pick(&[0, 1, u32::MAX, u32::MAX >> 1, 1 << 16, 1 << 21, rng_length(bytes) + 1]);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
    }),
    ("reserved bytes", |bytes, rng| bytes[5 + rng.below(3) as usize] = rng.between(1, 255) as u8),
    ("unknown type", |bytes, rng| bytes[4] = rng.between(0x44, 0x7f) as u8),
    ("another type", |bytes, rng| bytes[4] = FrameType::ALL[rng.below(FrameType::ALL.len() as u64) as usize].byte()),
    ("a bit", |bytes, rng| {
        let at = body_place(bytes, rng);
        bytes[at] ^= 1 << rng.below(8);
    }),
    ("a field of ones", |bytes, rng| overwrite(bytes, rng, |_| 0xff)),
    ("a field of zeros", |bytes, rng| overwrite(bytes, rng, |_| 0)),
    ("a field of noise", |bytes, rng| overwrite(bytes, rng, |rng| rng.word() as u8)),
];

fn rng_length(bytes: &[u8]) -> u32 {
    (bytes.len() - FRAME_HEADER_BYTES) as u32
}

fn set_length(bytes: &mut [u8]) {
    let length = rng_length(bytes);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
}

/// In the body, and more often near its begin, where the fields are.
fn body_place(bytes: &[u8], rng: &mut Rng) -> usize {
    let body = (bytes.len() - FRAME_HEADER_BYTES) as u64;
    if body == 0 {
        return rng.below(FRAME_HEADER_BYTES as u64) as usize;
    }
    let within = if rng.percent(50) { body.min(64) } else { body };
    FRAME_HEADER_BYTES + rng.below(within) as usize
}

fn overwrite(bytes: &mut [u8], rng: &mut Rng, byte: impl Fn(&mut Rng) -> u8) {
    let (from, width) = (body_place(bytes, rng), rng.pick(&[1, 2, 4, 8]));
    let end = (from + width).min(bytes.len());
    for place in &mut bytes[from..end] {
        *place = byte(rng);
    }
}

/// The class, if it is refused by the decoder, or by the machine that gets it.
fn damaged_frame(name: &str, frame: &Frame, damage: Damage, rng: &mut Rng) -> Option<String> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    (damage.1)(&mut bytes, rng);
    match read(&bytes) {
        Read::Refused => Some(format!("{name}: {}", damage.0)),
        Read::Incomplete => None,
        Read::Frame(frame) => {
            let mut again = Vec::new();
            frame.encode(&mut again);
            let text = matches!(frame, Frame::Abort(_) | Frame::Error(_));
            assert!(text || bytes.starts_with(&again), "{frame:?} has two forms");
            let at_sink = rng.percent(50);
            violates(frame.clone(), at_sink).then(|| {
                let end = if at_sink { "sink" } else { "source" };
                format!("{:?} at a {end} that expects something else", frame.frame_type())
            })
        }
    }
}

enum Read {
    Refused,
    Incomplete,
    Frame(Frame),
}

/// As lane 0 reads it.
fn read(bytes: &[u8]) -> Read {
    let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Read::Incomplete };
    let Ok(header) = FrameHeader::decode(*head, MAX_CONTROL_BYTES) else { return Read::Refused };
    let Some(body) = rest.get(..header.body_bytes()) else { return Read::Incomplete };
    match Frame::decode(header.frame, body) {
        Ok(Some(frame)) => Read::Frame(frame),
        Ok(None) => Read::Incomplete,
        Err(_) => Read::Refused,
    }
}

/// Whether a machine that has just begun ends for it with a violation. It may ignore it, or end otherwise; it may not
/// let the guest run.
fn violates(frame: Frame, at_sink: bool) -> bool {
    let leaves = || Arc::new(Leaves::new(&specimens::offer().layout));
    let error = if at_sink {
        end_of(Sink::new(SinkConfig::default(), specimens::offer(), leaves(), PEER), frame)
    } else {
        end_of(Source::new(SourceConfig::default(), specimens::offer(), leaves(), PEER), frame)
    };
    matches!(error, Some(SessionError::PeerViolation { .. } | SessionError::Integrity { .. }))
}

fn end_of(mut machine: impl Machine, frame: Frame) -> Option<SessionError> {
    for input in [Input::Start, Input::Frame(frame)] {
        machine.handle(Time::default(), input);
        while let Some(output) = machine.poll() {
            match output {
                Output::Run => panic!("the guest would run"),
                Output::Finished(outcome) => {
                    assert_eq!(outcome.owner, Owner::Source, "{:?}", outcome.error);
                    return outcome.error;
                }
                _ => {}
            }
        }
    }
    None
}

/// With all that both ends hold from before.
fn check() -> ExtentCheck {
    let baseline = Arc::new(OldOnes { layout: Layout::new(&[u64::from(PAGES_OF_BASELINE) * 4096]).unwrap() });
    ExtentCheck::new(LANE, EPOCH).with_dictionaries(specimens::dictionaries()).with_baseline(Some(baseline))
}

/// A baseline of old pages.
#[derive(Debug)]
struct OldOnes {
    layout: Layout,
}

impl OldPages for OldOnes {
    fn digest(&self) -> Digest {
        Digest([8; 32])
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn leaves_of(&self, layout: &Layout) -> Arc<Leaves> {
        Arc::new(Leaves::new(layout))
    }

    fn find(&self, _: Digest, _: (RegionId, u32)) -> Option<(RegionId, u32)> {
        None
    }

    fn read(&self, _: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        assert!(first < PAGES_OF_BASELINE, "a page that the baseline does not have");
        into.copy_from_slice(&specimens::old_page());
        Ok(())
    }
}

/// The sink's side of one lane, which checks extents as a worker does.
struct Lane {
    check: ExtentCheck,
    bench: Workbench,
    layout: Layout,
    old: Vec<u8>,
}

impl Lane {
    fn new() -> Self {
        let layout = specimens::offer().layout;
        Self { check: check(), bench: Workbench::new(), layout, old: specimens::old_page() }
    }

    /// Whether damaged bytes are refused. Applied they must not be.
    fn refuses(&mut self, bytes: &[u8], parcel: &Parcel) -> bool {
        match self.feed(bytes) {
            Fed::Refused => true,
            Fed::Incomplete | Fed::Skipped => false,
            Fed::Applied(plain, _) => {
                // A block that packs the same pages otherwise.
                assert!(plain == parcel.plain, "damaged bytes of {} were applied", parcel.name);
                self.check = check();
                false
            }
        }
    }

    /// One frame from the begin of these bytes.
    fn feed(&mut self, bytes: &[u8]) -> Fed {
        let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Fed::Incomplete };
        let Ok(header) = FrameHeader::decode(*head, MAX_EXTENT_BYTES) else { return Fed::Refused };
        let Some(body) = rest.get(..header.body_bytes()) else { return Fed::Incomplete };
        match FrameType::from_byte(header.frame) {
            Some(FrameType::Extent) => {}
            Some(_) => return Fed::Refused,
            None => return Fed::Skipped,
        }
        let mut read = |_, _, into: &mut [u8]| {
            into.copy_from_slice(&self.old);
            Ok(())
        };
        match self.check.check(&mut self.bench, body, &self.layout, &mut read) {
            Ok(checked) => Fed::Applied(checked.plain.to_vec(), FRAME_HEADER_BYTES + body.len()),
            Err(SessionError::PeerViolation { .. } | SessionError::Integrity { .. }) => Fed::Refused,
            Err(error) => panic!("no error that blames the peer: {error}"),
        }
    }
}

enum Fed {
    Refused,
    Incomplete,
    Skipped,
    Applied(Vec<u8>, usize),
}

/// What came of the bits that were flipped inside the channel.
#[derive(Debug, Default)]
pub struct Flips {
    /// The lane ended with a typed error.
    pub refused: u64,
    /// The lane waits for bytes that never come: a length was changed.
    pub waits: u64,
    /// The block says the same in other words: every page that was applied is the one that was sent.
    pub same: u64,
}

/// Flips one bit of a sound lane's bytes, so many times, anywhere.
///
/// # Panics
/// Anything was applied that was not sent.
pub fn bit_flips(count: u64, seed: u64) -> Flips {
    let parcels = specimens::parcels();
    let frames: Vec<Vec<u8>> = parcels.iter().zip(0..).map(|(parcel, seq)| parcel.frame(seq)).collect();
    let sound = frames.concat();
    let (mut rng, mut flips) = (Rng::new(seed), Flips::default());
    for _ in 0..count {
        let (at, bit) = (rng.below(sound.len() as u64) as usize, rng.below(8));
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << bit;
        let (applied, end) = run_lane(&bytes, &parcels);
        match end {
            Fed::Refused => flips.refused += 1,
            _ if applied == parcels.len() => flips.same += 1,
            _ => flips.waits += 1,
        }
    }
    flips
}

/// How many extents of a lane are applied, each as it was sent, and how it ends.
fn run_lane(bytes: &[u8], parcels: &[Parcel]) -> (usize, Fed) {
    let (mut lane, mut rest, mut applied) = (Lane::new(), bytes, 0);
    loop {
        match lane.feed(rest) {
            Fed::Applied(plain, whole) => {
                assert!(plain == parcels[applied].plain, "extent {applied} is not what was sent");
                applied += 1;
                rest = &rest[whole..];
            }
            Fed::Skipped => {
                let length = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                rest = &rest[FRAME_HEADER_BYTES + length..];
            }
            end => return (applied, end),
        }
    }
}
