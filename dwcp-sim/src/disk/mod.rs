//! Crash states of a disk: what receivers, senders and stores of baselines keep there, cut off at every step, in every way that the
//! contract of `dwcp_core::storage` allows, and started again.
//!
//! ```text
//!  life of a node ──every step──> its state, and what it had promised
//!                                   │ power cut: any sector, any name, old or new      kill: the cache stays
//!                                   v
//!                                 the next life: are the promises kept? go on, crash again, in the end finish
//! ```

mod baselines;
mod crash;
mod model;
mod sink;
mod source;

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

pub use self::model::Lie;
use self::model::{Disk, State};
use crate::rng::Rng;

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    /// Different states in which a node was started again.
    pub states: u64,
    /// Starts of nodes.
    pub lives: u64,
    /// Steps at which a disk could crash.
    pub steps: u64,
}

/// A promise that a crash broke.
#[derive(Debug)]
pub struct Broken {
    /// Runs all of it again.
    pub seed: u64,
    /// Crashes before it, in this run of the node.
    pub depth: u32,
    /// Which.
    pub what: String,
    /// All that was done on the disk before.
    pub trace: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, after {} crashes: {}", self.seed, self.depth, self.what)
    }
}

/// Why a life ended before its end.
enum Stop {
    /// Something failed with this, which only a disk may make it do that was told to fail.
    Fault(String),
    Broken(String),
}

impl Stop {
    fn fault(error: impl fmt::Display) -> Self {
        Self::Fault(error.to_string())
    }
}

/// A node whose lives are simulated.
trait Node {
    type Told: Clone + Default + Hash + Send + fmt::Debug + 'static;

    /// The disk before its first life.
    fn first(&self) -> State<Self::Told>;

    /// From its start to its end; `last`: nothing disturbs it, and it must come to the good end.
    fn live(&self, disk: &Disk<Self::Told>, rng: &mut Rng, last: bool) -> Result<(), Stop>;
}

/// How many crashes there are in a row.
const DEPTH: u32 = 3;

/// Runs a seed: one receiver and one sender, each with all that its crashes lead to.
///
/// # Errors
/// The first promise that was broken.
pub fn run_seed(seed: u64, lie: Option<Lie>, seen: &mut HashSet<u64>) -> Result<Tried, Box<Broken>> {
    run(seed, lie, seen, |campaign| campaign.transfer())
}

/// Runs a seed: one store of baselines.
///
/// # Errors
/// The first promise that was broken.
pub fn run_store_seed(seed: u64, lie: Option<Lie>, seen: &mut HashSet<u64>) -> Result<Tried, Box<Broken>> {
    run(seed, lie, seen, |campaign| campaign.store())
}

fn run(
    seed: u64,
    lie: Option<Lie>,
    seen: &mut HashSet<u64>,
    nodes: fn(&mut Campaign<'_>) -> Result<(), Box<Broken>>,
) -> Result<Tried, Box<Broken>> {
    let before = seen.clone();
    let mut campaign = Campaign { seed, rng: Rng::new(seed), lie, seen, traced: false, tried: Tried::default() };
    if nodes(&mut campaign).is_ok() {
        return Ok(campaign.tried);
    }
    // Once more, with a trace of it.
    *seen = before;
    let mut campaign = Campaign { seed, rng: Rng::new(seed), lie, seen, traced: true, tried: Tried::default() };
    nodes(&mut campaign).map(|()| campaign.tried)
}

struct Campaign<'a> {
    seed: u64,
    rng: Rng,
    lie: Option<Lie>,
    seen: &'a mut HashSet<u64>,
    traced: bool,
    tried: Tried,
}

impl Campaign<'_> {
    fn store(&mut self) -> Result<(), Box<Broken>> {
        self.explore(&baselines::Keeper)
    }

    fn transfer(&mut self) -> Result<(), Box<Broken>> {
        let receiver = sink::Receiver::new(&mut self.rng);
        self.explore(&receiver)?;
        self.explore(&source::Sender)
    }

    fn explore<N: Node>(&mut self, node: &N) -> Result<(), Box<Broken>> {
        let first = State { trace: self.traced.then(Vec::new), ..node.first() };
        let mut waiting = vec![(first, 0)];
        while let Some((state, depth)) = waiting.pop() {
            let last = depth == DEPTH;
            let fault = (!last && self.rng.percent(15)).then(|| u32::try_from(self.rng.below(14)).unwrap_or(0));
            let disk = Disk::start(state, self.lie, fault, !last);
            match node.live(&disk, &mut self.rng, last) {
                Err(Stop::Fault(_)) if disk.has_failed() => {}
                Err(Stop::Fault(what) | Stop::Broken(what)) => {
                    let trace = disk.state().trace.unwrap_or_default();
                    return Err(Box::new(Broken { seed: self.seed, depth, what, trace }));
                }
                Ok(()) => {}
            }
            self.tried.lives += 1;
            for step in disk.take_steps() {
                self.tried.steps += 1;
                // What a sync has lost shows lives later, if at all.
                let share = if step.has_lost() { 40 } else { 2 };
                if !last && (depth == 0 || self.rng.percent(share)) {
                    self.crash(&step, depth, &mut waiting);
                }
            }
        }
        Ok(())
    }

    /// A power cut or two, or a kill.
    fn crash<T: Clone + Hash>(&mut self, step: &State<T>, depth: u32, waiting: &mut Vec<(State<T>, u32)>) {
        for power in [true, self.rng.percent(50)] {
            let mut next = if power { crash::cut(step, &mut self.rng) } else { step.clone() };
            if self.seen.insert(crash::digest(&next)) {
                next.note(|| if power { "-- power cut --".into() } else { "-- kill --".into() });
                self.tried.states += 1;
                waiting.push((next, depth + 1));
            }
        }
    }
}
