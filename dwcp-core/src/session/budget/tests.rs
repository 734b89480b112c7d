use super::costs::STEPS;
use super::*;

const MS: Duration = Duration::from_millis(1);
const PAGES: u16 = 64;
/// Bytes a second.
const MEGABIT: u64 = 125_000;

/// A transfer: some encoders, a queue, a link, and a sink behind it.
struct Model {
    budget: Budget,
    encoders: Vec<Time>,
    /// When the link, and the sink, have done with all that they were given.
    link_free: Time,
    sink_free: Time,
    /// What the queue takes before an encoder has to wait.
    queue: u64,
    /// Bytes a second.
    link: u64,
    /// What a page takes of the sink: raw, and packed.
    sink: [Duration; 2],
    /// What a page takes of an encoder, and on the wire, in per cent of the table.
    slower: u32,
    bulkier: u64,
    acks: std::collections::VecDeque<(Time, u64, Effort)>,
    sent: u64,
    /// Pages still to send.
    left: u64,
}

impl Model {
    fn new(policy: EffortPolicy, link: u64) -> Self {
        Self {
            budget: Budget::new(policy, 2),
            encoders: vec![Time::default(); 2],
            link_free: Time::default(),
            sink_free: Time::default(),
            queue: 1 << 20,
            link,
            sink: [Duration::from_nanos(500); 2],
            slower: 100,
            bulkier: 100,
            acks: std::collections::VecDeque::new(),
            sent: 0,
            left: 1 << 30,
        }
    }

    fn now(&self) -> Time {
        self.encoders.iter().copied().min().unwrap_or_default()
    }

    /// Encodes the next extent, and gives it to the link once the queue has room. Returns its wire bytes.
    fn step(&mut self) -> u64 {
        let now = self.now();
        self.acknowledge(now);
        let effort = self.budget.effort();
        self.budget.handed(usize::from(PAGES), self.left);
        let table = STEPS.iter().find(|step| step.effort == effort).unwrap();
        let encode = table.time * u32::from(PAGES) * self.slower / 100;
        let packed = if effort == Effort::Raw { PAGE } else { (table.wire * self.bulkier / 100).min(PAGE) };
        let wire = u64::from(PAGES) * packed;
        let done = now + encode + written(wire);
        self.acknowledge(done);
        self.budget.encoded(Sample { effort, encode, carried: PAGES, same: 0, wire_bytes: wire });
        let over = super::super::converge::duration_at(self.queue, self.link);
        let room = Time::after_epoch(self.link_free.since_epoch().saturating_sub(over));
        *self.encoders.iter_mut().min().unwrap() = done.max(room);
        self.link_free = self.link_free.max(done) + super::super::converge::duration_at(wire, self.link);
        let page = self.sink[usize::from(effort != Effort::Raw)];
        self.sink_free = self.sink_free.max(self.link_free) + page * u32::from(PAGES);
        // A sink that is behind fills the link.
        self.link_free = self.link_free.max(Time::after_epoch(self.sink_free.since_epoch().saturating_sub(over)));
        self.acks.push_back((self.sink_free, wire, effort));
        self.sent += u64::from(PAGES) * PAGE;
        wire
    }

    fn acknowledge(&mut self, until: Time) {
        while let Some(&(at, wire, effort)) = self.acks.front().filter(|(at, ..)| *at <= until) {
            self.acks.pop_front();
            self.budget.delivered(at, wire, effort);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.step();
        }
    }

    /// Bytes of guest a second.
    fn rate(&mut self, time: Duration) -> u64 {
        let (begun, sent) = (self.now(), self.sent);
        self.run(time);
        rate(self.sent - sent, self.now().since(begun))
    }

    /// Share of what is sent in a while that has this effort, in per cent.
    fn share(&mut self, effort: Effort, time: Duration) -> u32 {
        let end = self.now() + time;
        let (mut of, mut all) = (0, 0);
        while self.now() < end {
            of += u32::from(self.budget.effort() == effort);
            all += 1;
            self.step();
        }
        of * 100 / all
    }
}

fn second() -> Duration {
    1000 * MS
}

fn best_fixed(seconds: u32, shape: impl Fn(&mut Model)) -> u64 {
    let of = |effort| {
        let mut model = Model::new(EffortPolicy::Fixed(effort), MEGABIT);
        shape(&mut model);
        model.run(second());
        model.rate(second() * seconds)
    };
    STEPS.iter().map(|step| of(step.effort)).max().unwrap()
}

#[test]
fn it_keeps_up_with_the_best_fixed_effort_on_a_link_that_changes() {
    for queue in [1 << 18, 1 << 20, 4 << 20] {
        let mut auto = Model::new(EffortPolicy::Auto, MEGABIT);
        auto.queue = queue;
        for megabits in [50, 500, 5000, 500, 50, 5000] {
            auto.link = megabits * MEGABIT;
            // A second to find out.
            auto.run(second());
            let got = auto.rate(20 * second());
            let best = best_fixed(20, |model| (model.link, model.queue) = (megabits * MEGABIT, queue));
            assert!(got * 100 >= best * 95, "{got} of {best} at {megabits} Mbit/s, queue {queue}: {:?}", auto.budget);
        }
    }
}

#[test]
fn machines_and_guests_that_are_not_those_of_the_table_are_learned() {
    for (slower, bulkier) in [(30, 100), (300, 100), (100, 30), (100, 200), (300, 30)] {
        for megabits in [50, 500, 1000, 5000, 20_000] {
            let shape =
                |model: &mut Model| (model.link, model.slower, model.bulkier) = (megabits * MEGABIT, slower, bulkier);
            let mut auto = Model::new(EffortPolicy::Auto, MEGABIT);
            shape(&mut auto);
            auto.run(second());
            let (got, best) = (auto.rate(10 * second()), best_fixed(10, shape));
            let case = format!("{got} of {best} at {megabits} Mbit/s, {slower} % of time, {bulkier} % of bytes");
            assert!(got * 100 >= best * 95, "{case}: {:?}", auto.budget);
        }
    }
}

#[test]
fn a_sink_that_decodes_slower_than_the_link_is_sent_raw_pages() {
    // What travels packed makes it look as if the link were slow.
    let shape = |model: &mut Model| {
        model.link = 20_000 * MEGABIT;
        model.sink = [3, 9].map(Duration::from_micros);
    };
    let mut auto = Model::new(EffortPolicy::Auto, MEGABIT);
    shape(&mut auto);
    auto.run(300 * MS);
    let (got, best) = (auto.rate(10 * second()), best_fixed(10, shape));
    assert!(got * 100 >= best * 95, "{got} of {best}: {:?}", auto.budget);
    assert!(auto.share(Effort::Raw, second()) > 90);
}

#[test]
fn a_slow_disk_behind_the_sink_is_no_reason_to_send_more() {
    let mut auto = Model::new(EffortPolicy::Auto, 5000 * MEGABIT);
    auto.sink = [40, 40].map(Duration::from_micros);
    auto.run(second());
    let wire = |model: &mut Model| (0..2000).map(|_| model.step()).sum::<u64>();
    let mut light = Model::new(EffortPolicy::Fixed(Effort::Light), 5000 * MEGABIT);
    assert!(wire(&mut auto) <= wire(&mut light) * 101 / 100);
}

#[test]
fn a_thin_link_is_known_by_the_first_acknowledgements() {
    let mut auto = Model::new(EffortPolicy::Auto, 50 * MEGABIT);
    auto.run(300 * MS);
    assert!(auto.share(Effort::Thorough(12), second()) > 90, "{:?}", auto.budget);
}

#[test]
fn lost_bets_on_raw_become_rare() {
    let mut auto = Model::new(EffortPolicy::Auto, 1000 * MEGABIT);
    let mut raw = |seconds: u32| {
        let end = auto.now() + second() * seconds;
        let mut raw = 0;
        while auto.now() < end {
            raw += u32::from(auto.budget.effort() == Effort::Raw);
            auto.step();
        }
        raw
    };
    let (first, then) = (raw(10), raw(100));
    assert!(first > 0 && then < first * 3, "{first}, then {then}");
}

#[test]
fn encoders_that_others_use_are_not_counted_on() {
    for megabits in [500, 2500] {
        let shape = |model: &mut Model| {
            model.link = megabits * MEGABIT;
            model.encoders.truncate(1);
        };
        let mut auto = Model::new(EffortPolicy::Auto, MEGABIT);
        auto.budget = Budget::new(EffortPolicy::Auto, 4);
        shape(&mut auto);
        auto.run(second());
        let (got, best) = (auto.rate(10 * second()), best_fixed(10, shape));
        assert!(got * 100 >= best * 80, "{got} of {best} at {megabits} Mbit/s: {:?}", auto.budget);
    }
}

#[test]
fn a_guest_that_packs_again_is_packed_again() {
    let mut auto = Model::new(EffortPolicy::Auto, 5000 * MEGABIT);
    auto.bulkier = 1000;
    auto.run(3 * second());
    auto.bulkier = 100;
    auto.run(4 * second());
    assert!(auto.share(Effort::Raw, second()) < 50, "{:?}", auto.budget);
}

#[test]
fn pages_that_are_looked_at_and_not_carried_make_no_encoder_slow() {
    let mut budget = Budget::new(EffortPolicy::Auto, 2);
    let look = Duration::from_nanos(1200) * 63;
    let light = STEPS[LIGHT].time;
    for extent in 0..200 {
        let now = Time::after_epoch(MS * extent);
        budget.delivered(now, 1160, Effort::Light);
        budget.encoded(Sample { effort: Effort::Light, encode: look + light, carried: 1, same: 63, wire_bytes: 1160 });
    }
    assert_eq!((budget.slower, budget.looks), (ONE, look));
}

#[test]
fn a_transfer_that_is_over_soon_places_no_bet() {
    let mut short = Model::new(EffortPolicy::Auto, 1000 * MEGABIT);
    short.left = 16 << 10;
    assert_eq!(short.share(Effort::Raw, second()), 0);
    assert!(!short.budget.bet.is_placed());
    short.left = 1 << 20;
    let mut raw = 0;
    for _ in 0..1000 {
        raw += u32::from(short.budget.effort() == Effort::Raw);
        short.step();
    }
    assert!(raw > 0);
}

#[test]
fn cores_that_do_not_suffice_for_the_link_mix_raw_pages_in() {
    let shape = |model: &mut Model| (model.link, model.slower) = (5000 * MEGABIT, 400);
    let mut auto = Model::new(EffortPolicy::Auto, MEGABIT);
    shape(&mut auto);
    auto.run(second());
    let (got, best) = (auto.rate(5 * second()), best_fixed(5, shape));
    assert!(got * 100 >= best * 105, "{got} of {best}, {:?}", auto.budget);
    let raw = auto.share(Effort::Raw, second());
    assert!((10..95).contains(&raw), "{raw} % raw");
}

#[test]
fn extents_that_change_effort_have_the_share_that_was_chosen() {
    let mut budget = Budget::new(EffortPolicy::Auto, 2);
    budget.take(Mix { lighter: LIGHT, harder: LIGHT + 1, share: 10 });
    let mut hard = 0;
    for _ in 0..160 {
        hard += u32::from(budget.effort() == Effort::Balanced);
        budget.handed(64, 1 << 30);
    }
    assert_eq!(hard, 50);
}

#[test]
fn time_without_work_tells_nothing() {
    let mut auto = Model::new(EffortPolicy::Auto, 50 * MEGABIT);
    auto.run(second());
    let link = auto.budget.carries();
    for _ in 0..100 {
        auto.budget.pause();
        auto.encoders.iter_mut().for_each(|encoder| *encoder = *encoder + second());
        (0..4).for_each(|_| _ = auto.step());
    }
    assert_eq!(auto.budget.carries(), link);
}

#[test]
fn another_link_is_begun_with_as_the_first() {
    let mut auto = Model::new(EffortPolicy::Auto, 50 * MEGABIT);
    auto.run(second());
    assert_ne!(auto.budget.effort(), Effort::Light);
    auto.budget.begin_anew();
    assert_eq!((auto.budget.effort(), auto.budget.carries()), (Effort::Light, 0));
}

#[test]
fn no_bet_outlives_a_pause() {
    let mut auto = Model::new(EffortPolicy::Auto, 1000 * MEGABIT);
    while !auto.budget.bet.takes_next() {
        auto.step();
    }
    auto.budget.pause();
    assert_ne!(auto.budget.effort(), Effort::Raw);
}

#[test]
fn what_was_under_way_when_compression_was_off_or_on_a_lane_that_died_is_not_waited_for() {
    let mut budget = Budget::new(EffortPolicy::Auto, 2);
    let sample = Sample { effort: Effort::Light, encode: MS, carried: PAGES, same: 0, wire_bytes: 1 << 16 };
    (0..3).for_each(|_| budget.encoded(sample));
    budget.allow(false);
    budget.delivered(Time::default(), 1 << 16, Effort::Light);
    budget.allow(true);
    budget.delivered(Time::default(), 1 << 16, Effort::Light);
    budget.gone();
    assert_eq!(budget.under_way, 0);
}

#[test]
fn what_is_set_stays() {
    let mut fixed = Model::new(EffortPolicy::Fixed(Effort::Thorough(6)), 5000 * MEGABIT);
    assert_eq!(fixed.share(Effort::Thorough(6), second()), 100);
    let mut off = Model::new(EffortPolicy::Auto, 50 * MEGABIT);
    off.budget.allow(false);
    assert_eq!(off.share(Effort::Raw, second()), 100);
}
