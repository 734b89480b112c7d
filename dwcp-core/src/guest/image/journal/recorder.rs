use std::io::{self, Read};

use super::log::{self, About, End, Entry};
use crate::extent::RegionId;
use crate::session::Leaves;
use crate::wire::Digest;

/// A journal as bytes to be written by somebody else, who decides when.
#[derive(Debug)]
pub(in crate::guest::image) struct Recorder {
    header: Vec<u8>,
    waiting: Vec<u8>,
    /// Where what has been taken ends.
    taken: End,
    /// Where what is waiting ends.
    end: End,
}

impl Recorder {
    /// Goes on with the journal in `input` if it is that of `about`, or begins one. Returns what it holds, too.
    pub(in crate::guest::image) fn go_on(input: impl Read, about: &About) -> io::Result<(Self, Leaves)> {
        let mut header = Vec::new();
        let begin = about.encode(&mut header);
        let (end, held) = match log::replay(input)?.filter(|replay| replay.about == *about) {
            Some(replay) => (replay.end, replay.held),
            None => (begin, Leaves::new(&about.layout)),
        };
        Ok((Self { header, waiting: Vec::new(), taken: end, end }, held))
    }

    /// What it begins with; it may be written at any time.
    pub(in crate::guest::image) fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes that were taken to be written, or were there before.
    pub(in crate::guest::image) fn bytes(&self) -> u64 {
        self.taken.bytes
    }

    /// Bytes that wait to be written.
    pub(in crate::guest::image) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Pages have these leaves.
    pub(in crate::guest::image) fn note(&mut self, region: RegionId, first: u32, leaves: &[Digest]) {
        self.end = Entry::Holds { region, first, leaves: leaves.to_vec() }.encode(&mut self.waiting, self.end);
    }

    /// What is to be written, and where.
    pub(in crate::guest::image) fn take_waiting(&mut self) -> (u64, Vec<u8>) {
        let at = self.taken.bytes;
        self.taken = self.end;
        (at, std::mem::take(&mut self.waiting))
    }

    /// Forgets what is waiting.
    pub(in crate::guest::image) fn drop_waiting(&mut self) {
        self.waiting.clear();
        self.end = self.taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Layout;
    use crate::session::Fingerprint;
    use crate::session::leaves::leaf;
    use crate::wire::Name;

    #[test]
    fn what_is_dropped_is_not_written_and_what_follows_goes_on_from_what_was() {
        let layout = Layout::new(&[4096 * 10]).unwrap();
        let about = About { peer: Fingerprint([3; 32]), name: Name::new("vm1").unwrap(), layout };
        let (mut recorder, _) = Recorder::go_on(&[][..], &about).unwrap();
        let mut written = recorder.header().to_vec();
        recorder.note(RegionId(0), 1, &[leaf(&[1; 4096])]);
        recorder.drop_waiting();
        assert_eq!(recorder.waiting(), 0);
        recorder.note(RegionId(0), 2, &[leaf(&[2; 4096])]);
        let (at, bytes) = recorder.take_waiting();
        assert_eq!(at, u64::try_from(written.len()).unwrap());
        written.extend(bytes);
        assert_eq!(recorder.bytes(), u64::try_from(written.len()).unwrap());
        let (_, held) = Recorder::go_on(&written[..], &about).unwrap();
        let known: Vec<_> = (0..10)
            .filter(|&page| held.get(crate::extent::FlatPage(page)) != crate::session::leaves::zero_leaf())
            .collect();
        assert_eq!(known, [2]);
    }
}
