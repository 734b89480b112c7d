//! Bugs that can be switched on, to prove that the simulator finds them. Without the feature
//! `planted-bugs` every question is answered `false` at compile time.

/// A mistake that an earlier draft could have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "planted-bugs"),
    expect(unreachable_pub, dead_code, reason = "exported with the feature only")
)]
pub enum Bug {
    /// A page in flight may be sent again on another lane.
    ExtentNotPinned,
    /// A page's shadow counts as what the sink holds as soon as it is sent.
    ShadowValidBeforeAck,
    /// A dead lane's pages are sent again before the sink has stopped its worker.
    UnburiedLane,
    /// Frames are not charged to the lane's credit.
    CreditLeak,
    /// A second RUN runs the guest a second time.
    DoubleCommit,
    /// A buried lane id may join again.
    StaleJoin,
    /// RUN is sent once, and not again after a reconnect.
    RunLost,
    /// A repeated RUN is answered with an error.
    RunDuplicated,
    /// The source runs the guest again when the sink is silent after RUN.
    SinkDeadAfterRun,
    /// HANDOVER is said before the fence is durable.
    HandoverBeforeFence,
    /// Lanes of before a FENCE go on behind it.
    LanesOutliveFence,
    /// The copies of acknowledged pages are trusted after lanes that did not keep them up.
    ShadowOutlivesHandover,
    /// A hand-over from zeros keeps the pages that are there.
    RestartKeepsPages,
    /// The source runs the guest again when GIVE_UP could not be made durable, whatever is on the disk.
    RunUnretracted,
}

/// The bug planted in one machine, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planted {
    #[cfg(feature = "planted-bugs")]
    bug: Option<Bug>,
}

impl Planted {
    #[cfg(feature = "planted-bugs")]
    pub(super) fn new(bug: Option<Bug>) -> Self {
        Self { bug }
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[expect(clippy::unused_self, reason = "the same call in both builds")]
    pub(super) const fn has(self, _: Bug) -> bool {
        false
    }
}
