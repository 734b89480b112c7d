//! The page delta that QEMU sends: runs of equal and of changed bytes, each length in LEB128, changed bytes as they are.
//!
//! Only the runs are counted, none of QEMU's 11 bytes of head a page. A page whose runs are longer than itself travels plain.

use dwcp_hde::PAGE_BYTES;

use crate::measure::{Method, Place};
use crate::rounds::Round;

struct Xbzrle<'a> {
    round: &'a Round<'a>,
    /// Pages that are not zero and differ from what the sink holds.
    places: Vec<usize>,
    packed: Vec<u8>,
    ends: Vec<usize>,
    page: Vec<u8>,
}

pub fn method<'a>(round: &'a Round<'_>) -> Option<Box<dyn Method + 'a>> {
    round.old?;
    let changed = |place: &usize| round.old_page(*place) != Some(round.page(*place));
    let places = round.pages.iter().map(|(_, place)| *place).filter(changed).collect();
    Some(Box::new(Xbzrle { round, places, packed: Vec::new(), ends: Vec::new(), page: vec![0; PAGE_BYTES] }))
}

impl Method for Xbzrle<'_> {
    fn name(&self) -> String {
        "xbzrle".into()
    }

    fn encode(&mut self) {
        self.packed.clear();
        self.ends.clear();
        for &place in &self.places {
            let (new, start) = (self.round.page(place), self.packed.len());
            pack(new, self.round.old_page(place).expect("a delta"), &mut self.packed);
            if self.packed.len() - start >= PAGE_BYTES {
                self.packed.truncate(start);
                self.packed.extend_from_slice(new);
            }
            self.ends.push(self.packed.len());
        }
    }

    fn bytes_out(&self) -> usize {
        self.packed.len()
    }

    fn decode(&mut self, put: &mut dyn FnMut(Place<'_>, &[u8])) {
        let mut start = 0;
        for (place, end) in self.places.iter().zip(&self.ends) {
            let packed = &self.packed[start..*end];
            if packed.len() == PAGE_BYTES {
                self.page.copy_from_slice(packed);
            } else {
                self.page.copy_from_slice(self.round.old_page(*place).expect("a delta"));
                unpack(packed, &mut self.page);
            }
            put(Place::At(&[*place]), &self.page);
            start = *end;
        }
    }
}

fn pack(new: &[u8], old: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    loop {
        let equal = equal_bytes(&new[at..], &old[at..]);
        if at + equal == new.len() {
            return; // the last run of equal bytes is implied
        }
        let from = at + equal;
        let changed = new[from..].iter().zip(&old[from..]).take_while(|(new, old)| new != old).count();
        put_length(equal, out);
        put_length(changed, out);
        out.extend_from_slice(&new[from..from + changed]);
        at = from + changed;
    }
}

fn equal_bytes(new: &[u8], old: &[u8]) -> usize {
    let (new_words, old_words) = (new.chunks_exact(8), old.chunks_exact(8));
    let words = 8 * new_words.zip(old_words).take_while(|(new, old)| new == old).count();
    words + new[words..].iter().zip(&old[words..]).take_while(|(new, old)| new == old).count()
}

fn unpack(mut packed: &[u8], page: &mut [u8]) {
    let mut at = 0;
    while !packed.is_empty() {
        at += take_length(&mut packed);
        let changed = take_length(&mut packed);
        let (bytes, rest) = packed.split_at(changed);
        page[at..at + changed].copy_from_slice(bytes);
        packed = rest;
        at += changed;
    }
}

fn put_length(length: usize, out: &mut Vec<u8>) {
    if length < 0x80 {
        out.push(length as u8);
    } else {
        out.extend_from_slice(&[0x80 | (length & 0x7f) as u8, (length >> 7) as u8]);
    }
}

fn take_length(packed: &mut &[u8]) -> usize {
    let low = usize::from(packed[0]);
    let length = if low < 0x80 { low } else { (low & 0x7f) | usize::from(packed[1]) << 7 };
    *packed = &packed[if low < 0x80 { 1 } else { 2 }..];
    length
}
