//! What a sink holds from before, told to a source over a link that costs no time: how many frames, and how fast.

use super::*;
use crate::extent::FlatPage;
use crate::session::allowance::{Allowance, Rate};
use crate::session::leaves::{Tree, leaf, zero_leaf};
use crate::session::{Sink, SinkConfig, Source, SourceConfig};
use crate::wire::{Accept, Digest, ErrorFrame, Have, Ping};

/// What each takes of the other (F-1).
const FROM_A_SINK: Rate = Rate { burst: 131_072, per_second: 65_536 };
const FROM_A_SOURCE: Rate = Rate { burst: 8192, per_second: 512 };

/// What it took until ACCEPT.
#[derive(Debug, Default)]
struct Told {
    frames: u64,
    leaves: u64,
    bytes: u64,
    pongs: u64,
    took: Duration,
    /// What the source knows then is what the sink holds.
    known: bool,
}

/// A layout of so many pages, of which the sink holds some.
fn tell(pages: u32, held: impl Fn(u32) -> bool) -> Told {
    let offer = Offer { layout: Layout::new(&[4096 * u64::from(pages)]).unwrap(), ..offer() };
    let [ours, theirs] = [(); 2].map(|()| Arc::new(Leaves::new(&offer.layout)));
    let content = leaf(&[7; 4096]);
    (0..pages).filter(|&page| held(page)).for_each(|page| theirs.set(FlatPage(page), content));
    let mut sink = Sink::new(SinkConfig::default(), offer.clone(), Arc::clone(&theirs), PEER);
    let mut source = Source::new(SourceConfig::default(), offer.clone(), Arc::clone(&ours), PEER);
    let begin = Time::after_epoch(Duration::from_secs(1));
    let (mut now, mut told) = (begin, Told::default());
    let [mut hears_sink, mut hears_source] = [FROM_A_SINK, FROM_A_SOURCE].map(|rate| Allowance::new(rate, now));
    source.handle(now, Input::Start);
    while source.poll().is_some() {}
    sink.handle(now, Input::Start);
    while source.progress().phase == crate::session::Phase::Offered {
        let Some(output) = sink.poll() else {
            // Its next batch has to wait.
            now = sink.deadline().unwrap();
            assert!(now.since(begin) < Duration::from_secs(60), "{told:?}");
            sink.handle(now, Input::Tick);
            continue;
        };
        let Output::Control(frame) = output else { panic!("{output:?}") };
        assert!(hears_sink.take(now), "a flood after {told:?}");
        if let Frame::Have(Have { leaves, .. }) = &frame {
            told.frames += 1;
            told.leaves += u64::try_from(leaves.len()).unwrap();
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            told.bytes += u64::try_from(bytes.len()).unwrap();
        }
        source.handle(now, Input::Frame(frame));
        while let Some(output) = source.poll() {
            if let Output::Control(Frame::Pong(pong)) = output {
                assert!(hears_source.take(now), "a flood of answers after {told:?}");
                told.pongs += 1;
                sink.handle(now, Input::Frame(Frame::Pong(pong)));
            }
        }
    }
    told.took = now.since(begin);
    let count = (0..pages).filter(|&page| held(page)).count();
    assert_eq!(source.progress().pages_held, u64::try_from(count).unwrap());
    let root = |leaves: &Leaves| Tree::new(&offer.layout).root(leaves);
    told.known = root(&ours) == root(&theirs);
    told
}

// spec: R-1, F-1
#[test]
fn what_is_held_in_pieces_is_told_within_what_an_honest_sink_may_say() {
    let scattered = |page: u32| leaf(&page.to_le_bytes()).0[0] & 1 == 0;
    let pages = 1 << 20;
    let patterns: [(&str, Told, u64); 3] = [
        ("every second page", tell(pages, |page| page % 2 == 0), 512),
        ("all but every 13th", tell(pages, |page| page % 13 != 0), 512),
        ("half of them, at random", tell(pages, scattered), 540),
    ];
    for (what, told, most) in patterns {
        println!("{what}: {told:?}");
        assert!(told.known, "{what}");
        assert!(told.frames <= most && told.bytes <= u64::from(pages) * 33, "{what}: {told:?}");
        assert!(told.pongs <= told.frames.div_ceil(64) && told.took == Duration::ZERO, "{what}: {told:?}");
    }
}

// spec: R-1, F-1
#[test]
fn what_no_frame_can_tell_together_is_told_as_slowly_as_the_source_can_hear_it() {
    // Far enough apart for a frame each, and more of them than a source takes at once.
    let told = tell(1 << 22, |page| page % 20 == 0);
    println!("{told:?}");
    assert!(told.known && told.took > Duration::ZERO, "{told:?}");
    assert!(told.frames < 140_000, "gaps that are longer are told from then on: {told:?}");
    assert!(told.pongs < 64 && told.took < Duration::from_secs(4), "{told:?}");
}

// spec: R-1
#[test]
fn a_batch_waits_for_its_answer_and_goes_on_without_one_that_was_lost() {
    let offer = Offer { layout: Layout::new(&[4096 * (1 << 18)]).unwrap(), ..offer() };
    let held = Arc::new(Leaves::new(&offer.layout));
    (0..1 << 18).step_by(20).for_each(|page| held.set(FlatPage(page), leaf(&[7; 4096])));
    let mut bench = Bench::new(Sink::new(SinkConfig::default(), offer.clone(), held, PEER));
    assert_eq!(frames(&bench.feed(Input::Start)).len(), 4096, "4 MiB, where each frame counts 1 KiB at least");
    assert!(frames(&bench.after(Duration::from_secs(5))).is_empty());
    bench.feed(Input::ControlDown { clean: false });
    assert!(frames(&bench.feed(Input::ControlUp)).is_empty());
    let again = frames(&bench.hear(Frame::Offer(offer)));
    let Some(Frame::Have(Have { first: 0, .. })) = again.first() else { panic!("{:?}", again.first()) };
    let mut left = 0;
    while !matches!(frames(&bench.hear(Frame::Pong(Ping { id: 0 }))).last(), Some(Frame::Accept(_))) {
        left += 1;
    }
    assert_eq!((again.len(), left), (4096, 2));
}

// spec: R-1, O-9
#[test]
fn zeros_in_have_tell_nothing() {
    let [held, baseline] = [(); 2].map(|()| leaves());
    let [of_baseline, of_have] = [1, 7].map(|byte| leaf(&[byte; 4096]));
    (0..64).for_each(|page| baseline.set(FlatPage(page), of_baseline));
    for (page, leaf) in [(3, of_have), (5, of_have), (6, of_baseline)] {
        held.set(FlatPage(page), leaf);
    }
    let named = Offer { baselines: vec![Digest([1; 32])], ..offer() };
    let sink = Sink::new(SinkConfig::default(), named.clone(), Arc::clone(&held), PEER);
    let mut sink = Bench::new(sink.with_baseline(0, Arc::clone(&baseline)));
    let told = frames(&sink.feed(Input::Start));
    let have = Have { region: crate::RegionId(0), first: 3, leaves: vec![of_have, zero_leaf(), of_have] };
    let accept = Accept { transfer: named.transfer, dictionaries: 0, baseline: Some(0) };
    assert_eq!(told, [Frame::Have(have), Frame::Accept(accept)]);

    let ours = leaves();
    let source = Source::new(SourceConfig::default(), named, Arc::clone(&ours), PEER).with_baselines(vec![baseline]);
    let mut source = Bench::new(source);
    source.feed(Input::Start);
    for frame in told {
        for output in source.hear(frame) {
            if let Output::Recall { held, baseline: Some(baseline) } = output {
                held.assume(&baseline);
            }
        }
    }
    assert_eq!(source.machine.progress().pages_held, 2);
    assert!((0..64).all(|page| ours.get(FlatPage(page)) == held.get(FlatPage(page))));
    assert_eq!([3, 4, 5].map(|page| ours.get(FlatPage(page))), [of_have, of_baseline, of_have]);
}

// spec
#[test]
fn an_accusation_that_says_nothing_against_the_pages_leaves_them_to_the_next_transfer() {
    for code in ErrorCode::ALL {
        let mut bench = Bench::new(Sink::new(SinkConfig::default(), offer(), leaves(), PEER));
        bench.feed(Input::Start);
        let report = ErrorFrame { code, lane: LaneId::CONTROL, position: 0, text: "no".into() };
        let outputs = bench.hear(Frame::Error(report));
        let (parks, discards) = (asked!(outputs, Output::Park), asked!(outputs, Output::Discard));
        assert_eq!((parks, discards), (!code.is_integrity(), code.is_integrity()), "{code:?}");
    }
}
