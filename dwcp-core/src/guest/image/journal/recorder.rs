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
    use crate::extent::{FlatPage, Layout};
    use crate::session::Fingerprint;
    use crate::session::leaves::{leaf, zero_leaf};
    use crate::wire::Name;

    fn about(peer: u8) -> About {
        let layout = Layout::new(&[4096 * 10]).unwrap();
        About { peer: Fingerprint([peer; 32]), name: Name::new("vm1").unwrap(), layout }
    }

    fn known(held: &Leaves) -> Vec<u32> {
        (0..10).filter(|&page| held.get(FlatPage(page)) != zero_leaf()).collect()
    }

    fn length(bytes: &[u8]) -> u64 {
        u64::try_from(bytes.len()).unwrap()
    }

    #[test]
    fn what_is_dropped_is_not_written_and_what_follows_goes_on_from_what_was() {
        let about = about(3);
        let (mut recorder, _) = Recorder::go_on(&[][..], &about).unwrap();
        let mut written = recorder.header().to_vec();
        recorder.note(RegionId(0), 1, &[leaf(&[1; 4096])]);
        recorder.drop_waiting();
        assert_eq!(recorder.waiting(), 0);
        recorder.note(RegionId(0), 2, &[leaf(&[2; 4096])]);
        let (at, bytes) = recorder.take_waiting();
        assert_eq!(at, length(&written));
        written.extend(bytes);
        assert_eq!(recorder.bytes(), length(&written));
        let (_, held) = Recorder::go_on(&written[..], &about).unwrap();
        assert_eq!(known(&held), [2]);
    }

    #[test]
    fn it_goes_on_where_it_was_taken_and_with_no_other_image() {
        let (mut recorder, held) = Recorder::go_on(&[][..], &about(3)).unwrap();
        assert_eq!((known(&held), recorder.bytes()), (vec![], length(recorder.header())));
        let mut written = recorder.header().to_vec();
        for page in [1, 2] {
            recorder.note(RegionId(0), page, &[leaf(&[1; 4096])]);
            let (waiting, before) = (recorder.waiting(), recorder.bytes());
            let (at, bytes) = recorder.take_waiting();
            assert_eq!((at, before, bytes.len()), (length(&written), length(&written), waiting));
            written.extend(bytes);
            assert_eq!((recorder.waiting(), recorder.take_waiting()), (0, (length(&written), vec![])));
        }
        // What is torn behind it is written over.
        let torn = [&written[..], &[1; 9]].concat();
        let (mut recorder, held) = Recorder::go_on(&torn[..], &about(3)).unwrap();
        assert_eq!((known(&held), recorder.bytes()), (vec![1, 2], length(&written)));
        recorder.note(RegionId(0), 5, &[leaf(&[1; 4096])]);
        written.extend(recorder.take_waiting().1);
        assert_eq!(known(&Recorder::go_on(&written[..], &about(3)).unwrap().1), [1, 2, 5]);
        let (other, held) = Recorder::go_on(&written[..], &about(4)).unwrap();
        assert_eq!((known(&held), other.bytes()), (vec![], length(other.header())));
    }
}
