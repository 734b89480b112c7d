//! The hand-over, exhaustively: every state that a source and a sink of a few pages can come to, in every order of
//! what may happen. `just model` walks through more of them; `src/model` says what is real and what is drawn.

use std::collections::BTreeSet;

use dwcp_core::wire::Framing;
use dwcp_sim::model::{Action, Bounds, Flaw, Frame, Model, SourcePhase, State, Variant, walk};
use stateright::{Checker, Property};

/// What stateright walks through.
struct Checked(Model);

impl stateright::Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        self.0.begin()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(self.0.actions(state));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.0.after(state, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = SAFETY.map(|(name, holds)| Property::always(name, holds));
        let sometimes = REACHED.map(|(name, there)| Property::sometimes(name, there));
        always.into_iter().chain(sometimes).collect()
    }
}

type Condition = fn(&Checked, &State) -> bool;

/// One for each [`Flaw`]: stateright takes no closures that know which.
macro_rules! never {
    ($flaw:ident) => {
        (Flaw::$flaw.rule(), |_, state| !state.flaws.has(Flaw::$flaw))
    };
}

const SAFETY: [(&str, Condition); Flaw::ALL.len()] = [
    never!(TwoOwners),
    never!(Stale),
    never!(WentBack),
    never!(OldEpoch),
    never!(Visible),
    never!(Unfenced),
    never!(OverCredit),
    never!(AfterGiveUp),
    never!(NotDurable),
    never!(Released),
    never!(Tainted),
    never!(Disputed),
    never!(Accused),
];

/// A model in which nothing happens breaks nothing.
const REACHED: [(&str, Condition); 8] = [
    ("switched over by messages", |_, state| {
        state.switched_over() && state.began == Framing::Extents && state.sink.fencing.framing() == Framing::Messages
    }),
    ("off, on, off", |_, state| {
        let off = state.sink.fencing.framing() == Framing::Messages;
        state.switched_over() && state.began == Framing::Messages && off && state.sink.epoch == 3 && !state.sink.cleared
    }),
    ("switched over after a restart from zeros", |_, state| state.switched_over() && state.sink.cleared),
    ("at the source", |_, state| state.source.phase == SourcePhase::Kept),
    ("in doubt, both paused", |_, state| {
        state.source.phase == SourcePhase::InDoubt && !state.source.running && !state.sink.running
    }),
    ("a lane goes on with its connection", |_, state| {
        let goes_on = |frame: &Frame| matches!(frame, Frame::Handover { lanes, .. } if lanes.iter().any(|lane| lane.2));
        state.link.to_source.iter().any(goes_on)
    }),
    ("READY meets a FENCE", |_, state| {
        let fence = state.link.to_sink.iter().any(|frame| matches!(frame, Frame::Fence(_)));
        fence && state.link.to_source.iter().any(|frame| matches!(frame, Frame::Ready { .. }))
    }),
    ("HANDOVER without its lanes", |_, state| {
        let bare = |frame: &Frame| matches!(frame, Frame::Handover { lanes, .. } if lanes.is_empty());
        !state.source.leave.is_active() && state.link.to_source.iter().any(bare)
    }),
];

/// Nothing may happen but what is said.
const STILL: Bounds =
    Bounds { pages: 2, window: 2, writes: 1, wishes: 2, cuts: 0, lane_cuts: 0, crashes: 0, slow: false };

/// What is walked through in seconds.
const FAST: [Bounds; 4] = [
    Bounds { pages: 3, window: 3, ..STILL },
    Bounds { wishes: 1, cuts: 1, ..STILL },
    Bounds { wishes: 1, lane_cuts: 1, crashes: 1, ..STILL },
    Bounds { pages: 1, window: 1, writes: 0, wishes: 1, cuts: 1, slow: true, ..STILL },
];

/// What is walked through in minutes: three epochs, and each pair of faults.
const FULL: [Bounds; 5] = [
    Bounds { pages: 3, window: 4, crashes: 1, ..STILL },
    Bounds { window: 3, cuts: 1, crashes: 1, ..STILL },
    Bounds { window: 3, lane_cuts: 1, crashes: 1, ..STILL },
    Bounds { wishes: 1, cuts: 1, lane_cuts: 1, crashes: 1, ..STILL },
    Bounds { pages: 1, window: 1, wishes: 1, cuts: 1, crashes: 1, slow: true, ..STILL },
];

/// Walks through everything twice: once for what must never be and what must be reached, once for the endings.
/// Returns the number of states and what was reached.
fn check(bounds: Bounds) -> (usize, BTreeSet<&'static str>) {
    use stateright::Model as _;

    let model = Model { bounds, variant: Variant::Faithful };
    let checker = Checked(model).checker().threads(2).spawn_bfs().join();
    for (rule, _) in SAFETY {
        let way = checker.discovery(rule).map(|path| describe(&path.into_vec()));
        assert!(way.is_none(), "{bounds:?}\nbroken: {rule}\n{}", way.unwrap_or_default());
    }
    let states = checker.unique_state_count();
    let ends = walk(&model);
    assert!(ends.stuck.is_none(), "{bounds:?}: no end after {:#?}", ends.stuck);
    assert_eq!(ends.states, states, "both walks see the same states");
    println!("{states:>9} states, at most {} steps, {bounds:?}, ends {:?}", ends.longest, ends.endings);
    (states, REACHED.iter().map(|&(name, _)| name).filter(|name| checker.discovery(name).is_some()).collect())
}

/// The shortest way to a state that must not be, one step a line.
fn describe(path: &[(State, Option<Action>)]) -> String {
    let steps = path.iter().map(|(state, action)| {
        let State { source, sink, link, lanes, .. } = state;
        format!("  {:?} -> {:?}, {link:?}\n    {lanes:?}\n  {action:?}\n", source.phase, sink.phase)
    });
    steps.collect()
}

fn check_all(all: &[Bounds]) -> usize {
    let (mut states, mut reached) = (0, BTreeSet::new());
    for &bounds in all {
        let (more, there) = check(bounds);
        states += more;
        reached.extend(there);
    }
    println!("{states} states: nothing that must not be, and every run ends");
    for (name, _) in REACHED {
        assert!(reached.contains(name), "never reached: {name}");
    }
    states
}

#[test]
fn no_order_of_events_breaks_a_hand_over() {
    assert!(check_all(&FAST) > 100_000);
}

/// `just model`
#[test]
#[ignore = "minutes, and gigabytes: just model"]
fn no_order_of_events_breaks_a_longer_hand_over() {
    check_all(&FULL);
}

/// What finds a variant: a rule that it breaks, or a run that does not end.
#[derive(Debug, PartialEq, Eq)]
enum Caught {
    Breaks(Flaw),
    NeverEnds,
}

#[test]
fn each_broken_variant_is_caught() {
    use Caught::{Breaks, NeverEnds};

    let cut = Bounds { wishes: 1, cuts: 1, ..STILL };
    let lanes = Bounds { wishes: 1, lane_cuts: 1, ..STILL };
    let crash = Bounds { wishes: 0, crashes: 1, ..STILL };
    let still = Bounds { wishes: 1, ..STILL };
    let variants = [
        (Variant::NoFence, still, Breaks(Flaw::OldEpoch)),
        (Variant::ReadyBeforeSync, crash, Breaks(Flaw::NotDurable)),
        (Variant::HandoverBeforeSync, still, Breaks(Flaw::Unfenced)),
        (Variant::ReleaseOnReceived, still, Breaks(Flaw::Released)),
        (Variant::SkipVersionCheck, Bounds { wishes: 0, ..lanes }, Breaks(Flaw::WentBack)),
        (Variant::ApplyOldEpoch, still, Breaks(Flaw::OldEpoch)),
        (Variant::RenameBeforeIntent, still, Breaks(Flaw::Visible)),
        (Variant::TrustSize, still, Breaks(Flaw::Stale)),
        (Variant::EarlyMessages, still, Breaks(Flaw::Unfenced)),
        (Variant::LateFrames, cut, Breaks(Flaw::Accused)),
        (Variant::CreditLeak, Bounds { window: 1, ..still }, Breaks(Flaw::OverCredit)),
        (Variant::LateHandover, still, Breaks(Flaw::AfterGiveUp)),
        (Variant::RestartKeepsPages, still, Breaks(Flaw::Tainted)),
        (
            Variant::AnswersUnasked,
            Bounds { pages: 1, window: 1, writes: 0, lane_cuts: 1, ..cut },
            Breaks(Flaw::Accused),
        ),
        (Variant::FenceLost, cut, NeverEnds),
    ];
    for (variant, bounds, expected) in variants {
        let model = Model { bounds, variant };
        let caught = find(model, &expected);
        println!("{variant:?}: {caught:?}");
        assert_eq!(caught.as_ref(), Some(&expected), "{variant:?}");
    }
}

/// Whether this is how the variant shows.
fn find(model: Model, expected: &Caught) -> Option<Caught> {
    use stateright::Model as _;

    let Caught::Breaks(flaw) = expected else {
        return walk(&model).stuck.map(|_| Caught::NeverEnds);
    };
    let wanted = [flaw.rule()].into_iter().collect();
    let until = stateright::HasDiscoveries::AllOf(wanted);
    let checker = Checked(model).checker().threads(2).finish_when(until).spawn_bfs().join();
    checker.discovery(flaw.rule()).map(|_| Caught::Breaks(*flaw))
}
