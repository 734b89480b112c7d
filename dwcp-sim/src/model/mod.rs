//! A world small enough to be walked through whole: the steps of a hand-over that ship
//! ([`Leaving`](dwcp_core::session::handover::Leaving), [`Fencing`](dwcp_core::session::handover::Fencing)) between a
//! source and a sink of a few pages, with everything that may happen to them in every order.
//!
//! ```text
//!   State ──actions()──> Action ──after()──> State, with the flaws that this step showed
//! ```
//!
//! What is real: both steps, their events and actions. What is drawn after the machines, rule by rule: lanes, burial,
//! acknowledgements, pause, READY, GIVE_UP, RUN, records. Time is not there: whatever waits may take for ever, and
//! whatever may be late is. Within a connection frames keep their order; a connection that is lost takes what is on its
//! way with it, and each end learns of that by itself. `tests/handover_model.rs` walks through it.

mod endings;
mod lane;
mod link;
mod normal;
mod sink;
mod source;

use dwcp_core::session::handover::Wish;
use dwcp_core::wire::{Framing, LaneId, TransferId};

pub use self::endings::{Walk, walk};
pub use self::lane::Lane;
pub use self::link::{Frame, Link};
pub use self::sink::{Sink, SinkPhase};
pub use self::source::{Source, SourcePhase};

/// Pages at most.
pub const PAGES: usize = 3;
/// What each page holds: 0 is zeros, then the source's versions.
pub type Pages = [u8; PAGES];

const TRANSFER: TransferId = TransferId([1; 16]);

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Pages of the guest, [`PAGES`] at most.
    pub pages: u8,
    /// Extents in flight on a lane: what it is granted.
    pub window: u8,
    /// Pages that the guest writes a second time.
    pub writes: u8,
    /// Times that either side changes its mind: one epoch each.
    pub wishes: u8,
    /// Times that lane 0 is lost.
    pub cuts: u8,
    /// Times that a lane is lost.
    pub lane_cuts: u8,
    /// Crashes of each side.
    pub crashes: u8,
    /// Workers with nothing in their hands may be slow to end, and dials that were given up may still arrive.
    pub slow: bool,
}

/// The model as it should be, or with one rule broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Nothing is broken.
    Faithful,
    /// FENCE ends no lane at the sink, and no worker looks at an epoch.
    NoFence,
    /// READY is said before it is durable.
    ReadyBeforeSync,
    /// HANDOVER is said before the fence is durable.
    HandoverBeforeSync,
    /// The source lets the guest go when the sink has received it.
    ReleaseOnReceived,
    /// A page is sent again while an older version of it is on its way.
    SkipVersionCheck,
    /// A lane's last extent stays behind its end, and is applied.
    ApplyOldEpoch,
    /// The sink makes its state visible when it is staged, before the source has given up.
    RenameBeforeIntent,
    /// As many pages as expected are the pages that are expected.
    TrustSize,
    /// The source goes on in the new framing when it has said FENCE.
    EarlyMessages,
    /// Frames of a lost connection are handled with those of the next.
    LateFrames,
    /// The source does not count what it was granted.
    CreditLeak,
    /// The guest is handed over to another framing even after GIVE_UP.
    LateHandover,
    /// A hand-over from zeros keeps what is there.
    RestartKeepsPages,
    /// A sink answers on one connection what it was asked on the one before.
    AnswersUnasked,
    /// FENCE is said once, and not again on the next connection.
    FenceLost,
}

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Flaw {
    /// The guest runs at both ends, or is resumed after GIVE_UP.
    TwoOwners,
    /// The guest runs at the sink without the newest version of a page.
    Stale,
    /// An older version of a page is applied over a newer one.
    WentBack,
    /// Something of an older epoch is applied behind its fence.
    OldEpoch,
    /// Something is visible before the source has given up.
    Visible,
    /// Something of an epoch is applied, or HANDOVER said, before the fence is durable.
    Unfenced,
    /// More is in flight than was granted.
    OverCredit,
    /// A hand-over after GIVE_UP.
    AfterGiveUp,
    /// READY is said, or believed, and not durable.
    NotDurable,
    /// The source lets the guest go while it does not run at the sink.
    Released,
    /// A hand-over from zeros leaves something of before.
    Tainted,
    /// What the source knew the sink to hold is not there.
    Disputed,
    /// An honest end is accused.
    Accused,
}

impl Flaw {
    /// All, with their names.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::TwoOwners, "never two owners"),
        (Self::Stale, "the owner holds the newest version of every page"),
        (Self::WentBack, "the applied version never falls"),
        (Self::OldEpoch, "nothing of an older epoch is applied after its fence"),
        (Self::Visible, "visible is the old or the whole new state"),
        (Self::Unfenced, "the fence is durable before HANDOVER and before anything of its epoch is applied"),
        (Self::OverCredit, "in flight is at most what was granted"),
        (Self::AfterGiveUp, "after GIVE_UP no hand-over"),
        (Self::NotDurable, "READY is durable"),
        (Self::Released, "the source keeps the guest until it runs at the sink"),
        (Self::Tainted, "a hand-over from zeros leaves nothing"),
        (Self::Disputed, "what the source knows of the sink is so"),
        (Self::Accused, "an honest end is never accused"),
    ];

    /// The rule that it breaks.
    pub const fn rule(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// A set of [`Flaw`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flaws(u16);

impl Flaws {
    /// Whether this one is in it.
    pub fn has(self, flaw: Flaw) -> bool {
        self.0 & 1 << flaw as u8 != 0
    }

    /// Whether none is.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn add(&mut self, flaw: Flaw) {
        self.0 |= 1 << flaw as u8;
    }
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that has the guest.
    Source,
    /// The one that gets it.
    Sink,
}

/// All there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The end that has the guest.
    pub source: Source,
    /// The end that gets it.
    pub sink: Sink,
    /// The control connection.
    pub link: Link,
    /// Bulk lanes that one of the two ends still knows, by id.
    pub lanes: Vec<Lane>,
    /// What lanes carried at first.
    pub began: Framing,
    /// What may still happen: wishes, writes, cuts, lane cuts, crashes of each side.
    pub left: [u8; 6],
    /// What went wrong so far.
    pub flaws: Flaws,
}

/// Places in [`State::left`].
mod left {
    pub(super) const WISHES: usize = 0;
    pub(super) const WRITES: usize = 1;
    pub(super) const CUTS: usize = 2;
    pub(super) const LANE_CUTS: usize = 3;
    pub(super) const SOURCE_CRASHES: usize = 4;
    pub(super) const SINK_CRASHES: usize = 5;
}

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The guest writes this page at the source.
    Write(u8),
    /// A side's flag changes.
    Prefer(Side, Wish),
    /// What the guest wrote meanwhile is to be sent, too.
    Harvest,
    /// The rest is small enough: the guest is paused, and what it wrote is to be sent.
    Pause,
    /// The source's worker of a lane reads the next page and writes it to its connection.
    Send(LaneId),
    /// A lane that was dialled is at the sink.
    Join(LaneId),
    /// The sink's worker of a lane applies what comes first.
    Apply(LaneId),
    /// The source's worker of a lane ends.
    WorkerEnds(Side, LaneId),
    /// The epoch is durable.
    Raised(Side),
    /// What was applied is thrown away.
    Cleared,
    /// The record is durable.
    Recorded(Side),
    /// The next frame on lane 0 is handled here.
    Deliver(Side),
    /// The control connection breaks.
    Cut,
    /// A lane's connection breaks.
    CutLane(LaneId),
    /// An end learns that its control connection is gone.
    Notice(Side),
    /// The source has dialled again; the sink has, or has not, seen the end of the connection before.
    Reconnect(bool),
    /// A process dies and comes back; what it was writing is durable, or not.
    Crash(Side, bool),
    /// Somebody cancels at a source that has given up.
    Cancel,
}

/// The whole model.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// How much may happen.
    pub bounds: Bounds,
    /// What is broken.
    pub variant: Variant,
}

/// One step under way.
#[derive(Debug)]
struct Turn {
    on: Model,
    s: State,
}

impl Model {
    /// Transfers that begin with either framing.
    pub fn begin(&self) -> Vec<State> {
        [Framing::Extents, Framing::Messages].map(|framing| self.begin_with(framing)).into()
    }

    fn begin_with(&self, framing: Framing) -> State {
        let Bounds { pages, wishes, writes, cuts, lane_cuts, crashes, .. } = self.bounds;
        let s = State {
            source: Source::new(pages, framing),
            sink: Sink::new(framing),
            link: Link::default(),
            lanes: Vec::new(),
            began: framing,
            left: [wishes, writes, cuts, lane_cuts, crashes, crashes],
            flaws: Flaws::default(),
        };
        let mut turn = Turn { on: *self, s };
        turn.advance();
        turn.s
    }

    /// All that may happen in this state.
    pub fn actions(&self, s: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        if s.source.is_over() {
            return actions;
        }
        s.faults(&mut actions);
        s.source_actions(self, &mut actions);
        s.sink_actions(&mut actions);
        s.lane_actions(&mut actions);
        actions
    }

    /// The state after this.
    pub fn after(&self, s: &State, action: Action) -> State {
        let mut turn = Turn { on: *self, s: s.clone() };
        turn.act(action);
        if !self.bounds.slow {
            turn.end_idle_workers();
        }
        turn.look();
        turn.s.normalise();
        turn.s
    }
}

impl Turn {
    fn act(&mut self, action: Action) {
        match action {
            Action::Write(page) => self.write(page),
            Action::Prefer(side, wish) => {
                self.s.left[left::WISHES] -= 1;
                match side {
                    Side::Source => self.source_prefers(wish),
                    Side::Sink => self.sink_prefers(wish),
                }
            }
            Action::Harvest => self.harvest(),
            Action::Pause => {
                self.s.source.pause();
                self.harvest();
            }
            Action::Send(lane) => self.send(lane),
            Action::Join(lane) => self.join(lane),
            Action::Apply(lane) => self.apply(lane),
            Action::WorkerEnds(Side::Source, lane) => self.source_worker_ends(lane),
            Action::WorkerEnds(Side::Sink, lane) => self.sink_worker_ends(lane),
            Action::Raised(side) => self.raised(side),
            Action::Cleared => self.cleared(),
            Action::Recorded(Side::Source) => self.gave_up(),
            Action::Recorded(Side::Sink) => self.sink_recorded(),
            Action::Deliver(Side::Source) => self.deliver_to_source(),
            Action::Deliver(Side::Sink) => self.deliver_to_sink(),
            Action::Cut => {
                self.s.left[left::CUTS] -= 1;
                self.s.link.alive = false;
            }
            Action::CutLane(lane) => {
                self.s.left[left::LANE_CUTS] -= 1;
                self.cut_lane(lane);
            }
            Action::Notice(Side::Source) => self.source_control_down(),
            Action::Notice(Side::Sink) => self.sink_control_down(),
            Action::Reconnect(noticed) => self.reconnect(noticed),
            Action::Crash(Side::Source, durable) => self.source_crashes(durable),
            Action::Crash(Side::Sink, durable) => self.sink_crashes(durable),
            Action::Cancel => self.s.source.phase = SourcePhase::InDoubt,
        }
    }

    fn flaw(&mut self, flaw: Flaw) {
        self.s.flaws.add(flaw);
    }

    /// An end says that the other broke a rule.
    fn accuse(&mut self) {
        self.flaw(Flaw::Accused);
    }

    fn raised(&mut self, side: Side) {
        match side {
            Side::Source => self.source_raised(),
            Side::Sink => self.sink_raised(),
        }
    }

    /// What shows in a state, whatever led to it.
    fn look(&mut self) {
        let s = &self.s;
        let (source, sink) = (&s.source, &s.sink);
        let mut flaws = Vec::new();
        if source.running && (sink.running || source.recorded) {
            flaws.push(Flaw::TwoOwners);
        }
        if sink.running && sink.holds != source.holds {
            flaws.push(Flaw::Stale);
        }
        if sink.running && !source.recorded {
            flaws.push(Flaw::Visible);
        }
        if source.phase == SourcePhase::Released && !sink.running {
            flaws.push(Flaw::Released);
        }
        if s.lanes.iter().any(|lane| lane.unapplied() > usize::from(self.on.bounds.window)) {
            flaws.push(Flaw::OverCredit);
        }
        if source.gave_up() && !source.leave.is_active() {
            flaws.push(Flaw::AfterGiveUp);
        }
        flaws.into_iter().for_each(|flaw| self.flaw(flaw));
    }
}

impl State {
    /// The guest runs at the sink, which the source knows.
    pub fn switched_over(&self) -> bool {
        self.sink.running && self.source.phase == SourcePhase::Released
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<&'static str> {
        match self.source.phase {
            SourcePhase::Released if self.sink.running => Some("switched over"),
            SourcePhase::Kept if self.source.running && !self.sink.running => Some("at the source"),
            SourcePhase::InDoubt if !self.source.running => Some("in doubt"),
            _ => None,
        }
    }
}
