//! Whether everything ends: a walk that finds a circle, or a state in which nothing can happen and nothing is decided.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::{Action, Model, State};

/// What the walk saw.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// Different states.
    pub states: usize,
    /// States in which nothing more can happen, by how they ended.
    pub endings: HashMap<&'static str, u64>,
    /// Steps of the longest way to an end.
    pub longest: usize,
    /// The first way that leads to no end: into a circle, or to a state that waits for nothing.
    pub stuck: Option<Vec<Action>>,
}

/// A state on the way, with what has not been tried of it.
struct Stop {
    state: State,
    seen: u64,
    left: Vec<Action>,
    taken: Option<Action>,
}

/// Walks through all states, depth first. With no circle among them and an ending in every last one, every run ends,
/// whatever happens in which order: no fairness is assumed. States are known by 64 bits of their hash.
pub fn walk(model: &Model) -> Walk {
    let (mut walk, mut on_the_way) = (Walk::default(), HashMap::new());
    for state in model.begin() {
        walk_from(model, state, &mut walk, &mut on_the_way);
    }
    walk
}

fn walk_from(model: &Model, begin: State, walk: &mut Walk, on_the_way: &mut HashMap<u64, bool>) {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut way: Vec<Stop> = Vec::new();
    let mut next = Some((begin, None));
    while walk.stuck.is_none() {
        if let Some((state, taken)) = next.take() {
            let seen = hasher.hash_one(&state);
            match on_the_way.insert(seen, true) {
                None => {
                    let left = model.actions(&state);
                    walk.states += 1;
                    walk.longest = walk.longest.max(way.len());
                    if left.is_empty() {
                        match state.ending() {
                            Some(ending) => *walk.endings.entry(ending).or_default() += 1,
                            None => walk.stuck = Some(trail(&way, taken)),
                        }
                    }
                    way.push(Stop { state, seen, left, taken });
                }
                Some(true) => walk.stuck = Some(trail(&way, taken)),
                Some(false) => drop(on_the_way.insert(seen, false)),
            }
        }
        let Some(stop) = way.last_mut() else { return };
        match stop.left.pop() {
            Some(action) => next = Some((model.after(&stop.state, action), Some(action))),
            None => {
                on_the_way.insert(stop.seen, false);
                way.pop();
            }
        }
    }
}

fn trail(way: &[Stop], last: Option<Action>) -> Vec<Action> {
    way.iter().map(|stop| stop.taken).chain([last]).flatten().collect()
}
