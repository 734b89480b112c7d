//! What a power cut may leave of a disk: any sector that was not synced, and any name, old or new.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::model::{Change, Content, Inode, State};
use crate::rng::Rng;

/// One state in which a disk may be found after its power failed in this one.
pub(super) fn cut<T: Clone>(state: &State<T>, rng: &mut Rng) -> State<T> {
    let keep_names = odds(rng);
    let mut names = state.durable_names.clone();
    for naming in &state.pending_names {
        if rng.percent(keep_names) {
            naming.apply(&mut names);
        }
    }
    // Files that no name leads to are gone.
    let mut inodes = Vec::new();
    let mut moved = BTreeMap::new();
    for inode in names.values_mut() {
        let now = moved.entry(*inode).or_insert_with(|| {
            let content = cut_file(&state.inodes[*inode], rng);
            inodes.push(Inode { live: content.clone(), durable: content, ..Inode::default() });
            inodes.len() - 1
        });
        *inode = *now;
    }
    State {
        inodes,
        durable_names: names.clone(),
        names,
        pending_names: Vec::new(),
        told: state.told.clone(),
        trace: state.trace.clone(),
    }
}

/// Any of the contents that each sector had since it was last durable, and any of the lengths.
fn cut_file(inode: &Inode, rng: &mut Rng) -> Content {
    let mut content = inode.durable.clone();
    let keep = odds(rng);
    let (lost, pending) = (&inode.lost, &inode.pending);
    for change in lost.iter().chain(pending) {
        if rng.percent(keep) {
            change.apply(&mut content);
        }
    }
    // A sector beyond the end that was kept is not there.
    let end = content.bytes;
    Change::Length(end).apply(&mut content);
    content
}

/// All, nothing, or a share of what is not durable.
fn odds(rng: &mut Rng) -> u64 {
    rng.pick(&[0, 0, 5, 30, 50, 70, 95, 100, 100])
}

/// As good as the identity of what is on a disk.
pub(super) fn digest<T: Hash>(state: &State<T>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (place, inode) in &state.names {
        let content = &state.inodes[*inode].durable;
        (place, content.bytes, &content.sectors).hash(&mut hasher);
    }
    state.told.hash(&mut hasher);
    hasher.finish()
}
