//! The bytes of a journal, and what is made of them after a crash.
//!
//! ```text
//!  header   magic [8] | length u32 | peer [32] | name length u8, name | count u16, bytes u64 x count | chain [16]
//!  record   kind u8 | region u16 | first u32 | count u32 | leaf [32] x count, if kind is 1           | chain [16]
//!           kind 1: these pages are durable with these leaves        kind 2: nobody knows what they are
//!  chain    the first 16 bytes of BLAKE3(chain before || what stands before it in this header or record)
//! ```
//!
//! Little-endian. The first record whose chain does not hold is where a crash tore the file, and the end of it.

use std::io::{self, Read};

use crate::extent::{FlatPage, Layout, MAX_REGIONS, RegionId};
use crate::session::leaves::zero_leaf;
use crate::session::{Fingerprint, Leaves};
use crate::storage::File;
use crate::wire::limits::MAX_NAME_BYTES;
use crate::wire::{Digest, Name};

const MAGIC: [u8; 8] = *b"DWCPwal1";
const CHAIN: usize = 16;
/// Bytes of a record before its leaves.
const HEAD: usize = 11;
/// Pages of one record: one extent, and a bound for what a damaged length can make us reserve.
const MAX_PAGES: usize = 4096;
const HOLDS: u8 = 1;
const UNKNOWN: u8 = 2;

/// Whose pages these are. Only the same peer, sending the same name and layout, goes on with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::guest::image) struct About {
    pub(in crate::guest::image) peer: Fingerprint,
    pub(in crate::guest::image) name: Name,
    pub(in crate::guest::image) layout: Layout,
}

/// What happened to pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// They are durable with these leaves.
    Holds { region: RegionId, first: u32, leaves: Vec<Digest> },
    /// They are being overwritten.
    Unknown { region: RegionId, first: u32, count: u32 },
}

/// Where a journal ends, for who appends to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    chain: [u8; CHAIN],
    /// Bytes up to here are whole.
    pub(super) bytes: u64,
}

impl About {
    /// The header, and where it ends.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> End {
        let mut body = self.peer.0.to_vec();
        body.push(u8::try_from(self.name.as_str().len()).unwrap_or(u8::MAX));
        body.extend_from_slice(self.name.as_str().as_bytes());
        let regions: Vec<u64> = self.layout.regions().map(|(_, region)| region.bytes).collect();
        body.extend_from_slice(&u16::try_from(regions.len()).unwrap_or(u16::MAX).to_le_bytes());
        regions.iter().for_each(|bytes| body.extend_from_slice(&bytes.to_le_bytes()));
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&body);
        let end = End { chain: [0; CHAIN], bytes: 0 };
        end.seal(out, start)
    }

    /// Reads a header. `None`: it is torn, or none of this version.
    fn read(input: &mut impl Read) -> io::Result<Option<(Self, End)>> {
        let mut bytes = vec![0; MAGIC.len() + 4];
        if !fill(input, &mut bytes)? || !bytes.starts_with(&MAGIC) {
            return Ok(None);
        }
        let length = number(bytes.get(MAGIC.len()..).unwrap_or_default());
        if length > 32 + 1 + MAX_NAME_BYTES + 2 + MAX_REGIONS * 8 {
            return Ok(None);
        }
        let Some(end) = rest_of(input, &mut bytes, length, End { chain: [0; CHAIN], bytes: 0 })? else {
            return Ok(None);
        };
        let about = Self::parse(bytes.get(MAGIC.len() + 4..MAGIC.len() + 4 + length).unwrap_or_default());
        Ok(about.map(|about| (about, end)))
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let (peer, rest) = body.split_first_chunk::<32>()?;
        let (length, rest) = rest.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (_, regions) = rest.split_first_chunk::<2>()?;
        let (regions, _) = regions.as_chunks::<8>();
        let regions: Vec<u64> = regions.iter().copied().map(u64::from_le_bytes).collect();
        let name = Name::new(std::str::from_utf8(name).ok()?).ok()?;
        Some(Self { peer: Fingerprint(*peer), name, layout: Layout::new(&regions).ok()? })
    }
}

impl Entry {
    /// Appends a record; returns where it ends.
    pub(super) fn encode(&self, out: &mut Vec<u8>, end: End) -> End {
        let start = out.len();
        let (kind, region, first, count) = match self {
            Self::Holds { region, first, leaves } => {
                (HOLDS, region, first, u32::try_from(leaves.len()).unwrap_or(u32::MAX))
            }
            Self::Unknown { region, first, count } => (UNKNOWN, region, first, *count),
        };
        out.push(kind);
        out.extend_from_slice(&region.0.to_le_bytes());
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        if let Self::Holds { leaves, .. } = self {
            leaves.iter().for_each(|leaf| out.extend_from_slice(&leaf.0));
        }
        end.seal(out, start)
    }

    /// How many bytes its record has.
    fn bytes(&self) -> u64 {
        let leaves = match self {
            Self::Holds { leaves, .. } => leaves.len() * 32,
            Self::Unknown { .. } => 0,
        };
        u64::try_from(HEAD + leaves + CHAIN).unwrap_or(u64::MAX)
    }

    /// The next record. `None`: the journal ends here, whole or torn.
    fn read(input: &mut impl Read, end: End) -> io::Result<Option<(Self, End)>> {
        let mut bytes = vec![0; HEAD];
        if !fill(input, &mut bytes)? {
            return Ok(None);
        }
        let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
        let region = RegionId(u16::try_from(number(rest.get(..2).unwrap_or_default())).unwrap_or(u16::MAX));
        let small = |bytes: &[u8]| u32::try_from(number(bytes)).unwrap_or(u32::MAX);
        let (first, count) = (small(rest.get(2..6).unwrap_or_default()), small(rest.get(6..10).unwrap_or_default()));
        let pages = usize::try_from(count).unwrap_or(usize::MAX);
        let leaves = match kind {
            HOLDS if pages <= MAX_PAGES => pages * 32,
            UNKNOWN => 0,
            _ => return Ok(None),
        };
        let Some(end) = rest_of(input, &mut bytes, leaves, end)? else { return Ok(None) };
        if kind == UNKNOWN {
            return Ok(Some((Self::Unknown { region, first, count }, end)));
        }
        let (leaves, _) = bytes.get(HEAD..).unwrap_or_default().as_chunks::<32>();
        let leaves = leaves.iter().take(pages).copied().map(Digest).collect();
        Ok(Some((Self::Holds { region, first, leaves }, end)))
    }

    /// How many pages are durable after it, of so many before.
    pub(super) fn count(&self, durable: u64) -> u64 {
        match self {
            Self::Holds { leaves, .. } => {
                let pages = leaves.iter().filter(|leaf| **leaf != zero_leaf()).count();
                durable + u64::try_from(pages).unwrap_or(0)
            }
            Self::Unknown { count, .. } => durable.saturating_sub(u64::from(*count)),
        }
    }

    fn apply(&self, layout: &Layout, leaves: &Leaves) {
        let (region, first) = match self {
            Self::Holds { region, first, .. } | Self::Unknown { region, first, .. } => (*region, *first),
        };
        let pages = (first..).map_while(|page| layout.flat(region, page));
        match self {
            Self::Holds { leaves: new, .. } => pages.zip(new).for_each(|(page, leaf)| leaves.set(page, *leaf)),
            Self::Unknown { count, .. } => {
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                pages.take(count).for_each(|page: FlatPage| leaves.set(page, zero_leaf()));
            }
        }
    }
}

impl End {
    /// Closes what stands in `out` from `start` on.
    fn seal(self, out: &mut Vec<u8>, start: usize) -> Self {
        let chain = self.over(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&chain);
        let bytes = self.bytes + u64::try_from(out.len() - start).unwrap_or(u64::MAX);
        Self { chain, bytes }
    }

    fn over(self, bytes: &[u8]) -> [u8; CHAIN] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain);
        hasher.update(bytes);
        hasher.finalize().as_bytes().first_chunk().copied().unwrap_or_default()
    }
}

/// Reads the rest of a record, `more` bytes and the chain, after what is in `bytes`.
fn rest_of(input: &mut impl Read, bytes: &mut Vec<u8>, more: usize, end: End) -> io::Result<Option<End>> {
    let have = bytes.len();
    bytes.resize(have + more + CHAIN, 0);
    if !fill(input, bytes.get_mut(have..).unwrap_or_default())? {
        return Ok(None);
    }
    let (body, chain) = bytes.split_at(have + more);
    let expected = end.over(body);
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    Ok((chain == expected).then_some(End { chain: expected, bytes: end.bytes + length }))
}

/// Whether all of it could be filled.
fn fill(input: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// What a journal says: whose, which pages are durable with which leaves (others count as zeros), and where it ends.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) about: About,
    pub(super) held: Leaves,
    pub(super) end: End,
}

/// Only whose it is.
///
/// # Errors
/// It cannot be read.
pub(super) fn about(mut input: impl Read) -> io::Result<Option<About>> {
    Ok(About::read(&mut input)?.map(|(about, _)| about))
}

/// Reads a journal up to where it was torn.
///
/// # Errors
/// It cannot be read.
pub(super) fn replay(mut input: impl Read) -> io::Result<Option<Replay>> {
    let Some((about, mut end)) = About::read(&mut input)? else { return Ok(None) };
    let held = Leaves::new(&about.layout);
    while let Some((entry, after)) = Entry::read(&mut input, end)? {
        entry.apply(&about.layout, &held);
        end = after;
    }
    Ok(Some(Replay { about, held, end }))
}

/// The bytes of entries that go to the end of a journal, as many entries as fit into `most` bytes but at least one, where
/// it ends then, and those that are left.
pub(super) fn encode(entries: &[Entry], end: End, most: u64) -> (Vec<u8>, End, &[Entry]) {
    let (mut bytes, mut after, mut rest) = (Vec::new(), end, entries);
    while let Some((entry, left)) = rest.split_first() {
        if !bytes.is_empty() && after.bytes + entry.bytes() > end.bytes.saturating_add(most) {
            break;
        }
        (after, rest) = (entry.encode(&mut bytes, after), left);
    }
    (bytes, after, rest)
}

/// Makes durable what a journal said up to its end, where a crash may have left it in the kernel's cache, or a sync have
/// failed: the last `tail` bytes are written again, and all behind the end goes.
///
/// # Errors
/// It cannot be written.
pub(super) fn mend(file: &dyn File, end: End, tail: u64) -> io::Result<()> {
    let start = end.bytes.saturating_sub(tail);
    let mut bytes = vec![0; usize::try_from(end.bytes - start).unwrap_or(0)];
    file.read_at(start, &mut bytes)?;
    // Also where the length stays the same it would give back space that was taken for what is to come.
    if file.stat()?.bytes > end.bytes {
        file.set_len(end.bytes)?;
    }
    file.write_at(start, &bytes)?;
    file.sync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::leaves::leaf;

    fn about() -> About {
        let layout = Layout::new(&[4096 * 100, 5000]).unwrap();
        About { peer: Fingerprint([3; 32]), name: Name::new("vm1").unwrap(), layout }
    }

    fn holds(region: u16, first: u32, bytes: &[u8]) -> Entry {
        let leaves = bytes.iter().map(|byte| leaf(&[*byte; 4096])).collect();
        Entry::Holds { region: RegionId(region), first, leaves }
    }

    fn whole(entries: &[Entry], end: End) -> (Vec<u8>, End) {
        let (bytes, end, rest) = encode(entries, end, u64::MAX);
        assert!(rest.is_empty());
        (bytes, end)
    }

    fn at(end: End) -> usize {
        usize::try_from(end.bytes).unwrap()
    }

    fn journal() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut end = about().encode(&mut bytes);
        let mut ends = vec![at(end)];
        let entries =
            [holds(0, 5, &[1, 2, 3]), Entry::Unknown { region: RegionId(0), first: 6, count: 1 }, holds(1, 1, &[9])];
        for entry in &entries {
            let (more, after) = whole(std::slice::from_ref(entry), end);
            bytes.extend(more);
            end = after;
            ends.push(at(end));
        }
        (bytes, ends)
    }

    fn held(replay: &Replay) -> Vec<u32> {
        (0..about().layout.flat_pages()).filter(|&page| replay.held.get(FlatPage(page)) != zero_leaf()).collect()
    }

    #[test]
    fn what_was_appended_is_replayed() {
        let (bytes, ends) = journal();
        let replay = replay(&bytes[..]).unwrap().unwrap();
        assert_eq!((&replay.about, at(replay.end)), (&about(), ends[3]));
        let other = about().layout.flat(RegionId(1), 1).unwrap().0;
        assert_eq!(held(&replay), [5, 7, other]);
        assert_eq!(replay.held.get(FlatPage(7)), leaf(&[3; 4096]));
    }

    #[test]
    fn a_header_has_the_longest_name_and_all_regions_but_is_no_longer() {
        let layout = Layout::new(&vec![4096; MAX_REGIONS]).unwrap();
        let about = About { name: Name::new(&"n".repeat(MAX_NAME_BYTES)).unwrap(), layout, ..about() };
        let mut bytes = Vec::new();
        let end = about.encode(&mut bytes);
        assert_eq!(About::read(&mut &bytes[..]).unwrap(), Some((about, end)));
        let length = u32::try_from(at(end) - MAGIC.len() - 4 - CHAIN).unwrap() + 1;
        bytes[MAGIC.len()..MAGIC.len() + 4].copy_from_slice(&length.to_le_bytes());
        bytes.extend([0; 64]);
        let mut rest = &bytes[..];
        assert_eq!(About::read(&mut rest).unwrap(), None);
        assert_eq!(rest.len(), bytes.len() - MAGIC.len() - 4, "not a byte is read of what is too long");
    }

    #[test]
    fn a_journal_torn_anywhere_says_what_was_whole() {
        let (bytes, ends) = journal();
        for length in 0..bytes.len() {
            let whole = ends.iter().rev().find(|&&end| end <= length).copied();
            assert_eq!(replay(&bytes[..length]).unwrap().map(|replay| at(replay.end)), whole, "{length} bytes");
        }
    }

    #[test]
    fn no_bit_can_be_flipped_and_nothing_moved() {
        let (bytes, ends) = journal();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let whole = ends.iter().rev().find(|&&end| end <= bit / 8).copied();
            assert_eq!(replay(&bad[..]).unwrap().map(|replay| at(replay.end)), whole, "bit {bit}");
        }
        let (first, second) = (ends[0], ends[1]);
        let swapped = [&bytes[..first], &bytes[second..ends[2]], &bytes[first..second]].concat();
        assert_eq!(at(replay(&swapped[..]).unwrap().unwrap().end), ends[0]);
    }

    #[test]
    fn a_journal_goes_on_where_it_was_torn() {
        let (bytes, ends) = journal();
        let torn = &bytes[..bytes.len() - 1];
        let end = replay(torn).unwrap().unwrap().end;
        let mut mended = torn[..ends[2]].to_vec();
        mended.extend(whole(&[holds(0, 90, &[4])], end).0);
        assert_eq!(held(&replay(&mended[..]).unwrap().unwrap()), [5, 7, 90]);
    }

    #[test]
    fn a_record_has_as_many_pages_as_it_may_and_no_more() {
        let mut bytes = Vec::new();
        let begin = about().encode(&mut bytes);
        let many = |count| Entry::Holds { region: RegionId(0), first: 98, leaves: vec![leaf(&[4; 4096]); count] };
        let (most, end) = whole(&[many(MAX_PAGES)], begin);
        bytes.extend(most);
        // What lies beyond its region is nobody's.
        let replay_of = |bytes: &[u8]| replay(bytes).unwrap().unwrap();
        assert_eq!((held(&replay_of(&bytes)), replay_of(&bytes).end), (vec![98, 99], end));
        let (unknown, after) = whole(&[Entry::Unknown { region: RegionId(0), first: 99, count: u32::MAX }], end);
        let (more, _) = whole(&[many(MAX_PAGES + 1)], end);
        let more = replay_of(&[&bytes[..], &more].concat());
        assert_eq!(more.end, end, "it is not ours");
        let unknown = replay_of(&[&bytes[..], &unknown].concat());
        assert_eq!((held(&unknown), unknown.end), (vec![98], after));
    }

    #[test]
    fn what_is_no_record_is_the_end_although_its_chain_holds() {
        let (bytes, ends) = journal();
        let end = replay(&bytes[..]).unwrap().unwrap().end;
        for kind in [0, 3, 255] {
            let mut bytes = bytes.clone();
            bytes.extend([kind, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0]);
            end.seal(&mut bytes, ends[3]);
            assert_eq!(replay(&bytes[..]).unwrap().unwrap().end, end);
        }
    }

    #[test]
    fn whose_a_journal_is_can_be_told_whatever_is_torn_behind_that() {
        let (bytes, ends) = journal();
        assert_eq!(super::about(&bytes[..ends[0]]).unwrap(), Some(about()));
        assert_eq!(super::about(&bytes[..ends[0] - 1]).unwrap(), None);
        let mut other = bytes;
        other[MAGIC.len() - 1] += 1;
        let start = End { chain: [0; CHAIN], bytes: 0 };
        other.truncate(ends[0] - CHAIN);
        assert_eq!(at(start.seal(&mut other, 0)), ends[0]);
        assert_eq!(super::about(&other[..]).unwrap(), None, "it is of another version");
    }

    /// A disk that reads so many bytes and fails then.
    struct Failing<'a>(&'a [u8]);

    impl Read for Failing<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::ErrorKind::InvalidData.into()) } else { self.0.read(into) }
        }
    }

    #[test]
    fn a_journal_that_cannot_be_read_is_not_taken_for_a_torn_one() {
        let (bytes, _) = journal();
        for length in 0..=bytes.len() {
            let failed = replay(Failing(&bytes[..length])).err().map(|error| error.kind());
            assert_eq!(failed, Some(io::ErrorKind::InvalidData), "after {length} bytes");
        }
        assert!(super::about(Failing(&bytes[..5])).is_err());
    }
}
