//! States that differ in nothing that matters become one: names and numbers that only count the past are made small.

use std::collections::BTreeMap;

use dwcp_core::wire::LaneId;

use super::link::Frame;
use super::source::Promise;
use super::{Lane, State};

impl State {
    pub(super) fn normalise(&mut self) {
        if self.source.is_over() {
            return self.conclude();
        }
        if self.source.gave_up() && self.lanes.iter().all(|lane| lane.wire.is_empty()) {
            // All is acknowledged, and nothing more is sent: lanes only wind down.
            self.lanes.clear();
        }
        self.lanes.retain(|lane| !lane.is_forgotten());
        self.renumber_attempts();
        // The steps under test keep ids and ends of their own in the middle of a hand-over.
        let between = self.source.leave.is_active() && self.sink.fencing.is_active();
        if between && !self.link.to_sink.iter().any(|frame| matches!(frame, Frame::Fence(_))) {
            self.renumber_lanes();
        }
    }

    /// How it ended is all that is left of it.
    fn conclude(&mut self) {
        self.lanes.clear();
        self.link.to_sink.clear();
        self.link.to_source.clear();
        self.left = [0; 6];
        let source = &mut self.source;
        (source.raising, source.attempt, source.last_lane, source.promise) = (None, 0, 0, None);
        let sink = &mut self.sink;
        (sink.raising, sink.pause, sink.promise, sink.record) = (None, None, None, None);
        sink.kept.clear();
    }

    /// Attempts are compared, and counted on from the last: their order is all that matters.
    fn renumber_attempts(&mut self) {
        let mut used = BTreeMap::new();
        self.attempts(|attempt| {
            used.insert(*attempt, 0);
        });
        used.remove(&0);
        for (place, rank) in used.values_mut().enumerate() {
            *rank = place as u8 + 1;
        }
        self.attempts(|attempt| *attempt = used.get(attempt).copied().unwrap_or(0));
    }

    fn attempts(&mut self, mut each: impl FnMut(&mut u8)) {
        let Self { source, sink, link, .. } = self;
        each(&mut source.attempt);
        let mut of_promise = |promise: &mut Promise| each(&mut promise.attempt);
        source.promise.iter_mut().for_each(&mut of_promise);
        sink.promise.iter_mut().for_each(|(promise, _)| of_promise(promise));
        sink.record.iter_mut().for_each(&mut of_promise);
        sink.pause.iter_mut().for_each(|pausing| each(&mut pausing.attempt));
        for frame in link.to_sink.iter_mut().chain(&mut link.to_source) {
            match frame {
                Frame::Pause { attempt, .. } | Frame::Run { attempt, .. } | Frame::Ready { attempt, .. } => {
                    each(attempt);
                }
                _ => {}
            }
        }
    }

    /// Ids of lanes rise, and are never used again: a lane that is forgotten is 0, which nobody knows. What is
    /// acknowledged of a lane is not counted.
    fn renumber_lanes(&mut self) {
        let names: BTreeMap<LaneId, (LaneId, u8)> =
            (1..).zip(&self.lanes).map(|(id, lane)| (lane.id, (LaneId(id), lane.acked))).collect();
        let rename = |id: &mut LaneId, places: &mut [&mut u8]| {
            let (name, acked) = names.get(id).copied().unwrap_or((LaneId(0), 0));
            *id = name;
            places.iter_mut().for_each(|place| **place = place.saturating_sub(acked));
        };
        for Lane { id, acked, written, applied, next, ends, .. } in &mut self.lanes {
            rename(id, &mut [acked, written, applied]);
            next.iter_mut().for_each(|next| rename(next, &mut []));
            *next = next.filter(|next| next.0 > 0);
            // It was there, or is not looked at any more.
            *ends = ends.map(|_| 0);
        }
        let Self { sink, link, source, .. } = self;
        source.last_lane = names.len() as u16;
        if let Some(pausing) = &mut sink.pause {
            pausing.finals.iter_mut().for_each(|(id, end)| rename(id, &mut [end]));
        }
        for frame in link.to_sink.iter_mut().chain(&mut link.to_source) {
            match frame {
                Frame::Bury(lane) => rename(lane, &mut []),
                Frame::Message { lane, first: place }
                | Frame::Ack { lane, applied: place }
                | Frame::Buried { lane, applied: place } => rename(lane, &mut [place]),
                Frame::Pause { finals, .. } => finals.iter_mut().for_each(|(id, end)| rename(id, &mut [end])),
                Frame::Handover { lanes, .. } => {
                    lanes.iter_mut().for_each(|(id, applied, _)| rename(id, &mut [applied]));
                }
                _ => {}
            }
        }
    }
}
