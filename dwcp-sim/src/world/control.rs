//! The control connection: frames as bytes, cuts, dials.

use dwcp_core::session::{Input, Sink};
use dwcp_core::wire::{ErrorCode, ErrorFrame, FRAME_HEADER_BYTES, Frame, FrameHeader, LaneId, Offer};

use super::{Dial, Event, World};
use crate::PEER;
use crate::net::Conn;
use crate::plan::{MS, Planted, SECOND, Side};
use crate::props::Property;

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Source => Self::Sink,
            Self::Sink => Self::Source,
        }
    }
}

impl World {
    pub(super) fn connect(&mut self) -> u64 {
        self.next_conn += 1;
        self.conns.insert(self.next_conn, Conn::OPEN);
        self.next_conn
    }

    /// A frame leaves; it is lost when there is no connection.
    pub(super) fn say(&mut self, from: Side, frame: &Frame) {
        self.look_at_frame(from, frame);
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let latency = self.latency();
        let size = bytes.len() as u64;
        let (now, rate, to) = (self.now, self.plan.lane_rate, from.other());
        let Some(conn) = self.node(from).conn else { return };
        let Some(stream) = self.conns.get_mut(&conn).map(|conn| conn.towards(to)) else { return };
        if stream.alive {
            let at = stream.arrival(now + latency + size * SECOND / rate);
            self.at(at, Event::Frame { conn, to, bytes });
        }
    }

    fn carries(&mut self, conn: u64, to: Side) -> bool {
        self.node(to).conn == Some(conn) && self.conns.get_mut(&conn).is_some_and(|conn| conn.towards(to).alive)
    }

    pub(super) fn frame_arrives(&mut self, conn: u64, to: Side, bytes: &[u8]) {
        if !self.carries(conn, to) {
            return;
        }
        self.node(to).heard_at = self.now;
        let mut head = [0; FRAME_HEADER_BYTES];
        head.copy_from_slice(&bytes[..FRAME_HEADER_BYTES]);
        let decoded = FrameHeader::decode(head, usize::MAX)
            .and_then(|header| Frame::decode(header.frame, &bytes[FRAME_HEADER_BYTES..]));
        let frame = match decoded {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(fault) => {
                return self.violate(Property::NoFalseAccusation, format!("an honest frame is refused: {fault:?}"));
            }
        };
        match (to, &frame) {
            (Side::Sink, Frame::Offer(offer)) if self.sink_machine.is_none() && self.said[1].is_none() => {
                let leaves = std::sync::Arc::clone(&self.sink_leaves);
                self.sink.engaged = (offer.epoch, self.plan.sink.framing);
                let sink = Sink::new(self.plan.sink.clone(), offer.clone(), leaves, PEER);
                let sink = self.warmed(sink);
                self.sink_machines += 1;
                self.sink_machine = Some(sink.with_bug(self.planted.and_then(Planted::core)));
                return self.feed(Side::Sink, Input::Start);
            }
            (Side::Source, Frame::Ack(ack)) => {
                for &(lane, applied) in &ack.lanes {
                    self.landed(lane, applied);
                }
            }
            (Side::Source, Frame::Buried(buried)) => self.landed(buried.lane, u64::MAX),
            (Side::Source, Frame::Handover(handover)) => {
                for handed in &handover.lanes {
                    self.landed(handed.lane, u64::MAX);
                }
            }
            _ => {}
        }
        self.feed(to, Input::Frame(frame));
    }

    /// The source learns what became of extents of a lane.
    fn landed(&mut self, lane: LaneId, below: u64) {
        let known: Vec<_> = self.flights.range((lane, 0)..(lane, below)).map(|(&key, _)| key).collect();
        for key in known {
            let Some(extent) = self.flights.remove(&key) else { continue };
            for page in extent.page_numbers() {
                let flat = self.layout.flat(extent.region(), page).unwrap();
                self.in_flight[flat.0 as usize] -= 1;
            }
        }
    }

    /// The connection dies; each side learns of it when it does.
    pub(super) fn cut(&mut self, conn: u64) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.to_source.alive = false;
            conn.to_sink.alive = false;
        }
        for at in [Side::Source, Side::Sink] {
            let delay = self.detection();
            self.after(delay, Event::ConnDown { conn, at, clean: false });
        }
    }

    /// How long it takes to notice that a connection is dead: mostly little.
    pub(super) fn detection(&mut self) -> u64 {
        match self.rng.below(10) {
            0 => self.rng.below(30 * SECOND),
            1 | 2 => self.rng.below(SECOND),
            _ => self.rng.below(self.plan.latency * 3),
        }
    }

    pub(super) fn conn_down(&mut self, conn: u64, at: Side, clean: bool) {
        if self.node(at).conn != Some(conn) {
            return;
        }
        if clean && !self.carries(conn, at) {
            // The farewell was lost with the connection.
            return self.after(SECOND, Event::ConnDown { conn, at, clean: false });
        }
        self.node(at).conn = None;
        self.feed(at, Input::ControlDown { clean });
    }

    /// This side is done with the connection.
    pub(super) fn hang_up(&mut self, side: Side) {
        let latency = self.latency();
        let now = self.now;
        let Some(conn) = self.node(side).conn.take() else { return };
        let other = side.other();
        let Some(streams) = self.conns.get_mut(&conn) else { return };
        streams.towards(side).alive = false;
        let at = streams.towards(other).arrival(now + latency);
        self.at(at, Event::ConnDown { conn, at: other, clean: true });
    }

    /// The source dials again.
    pub(super) fn dial(&mut self, fresh: bool, delay: u64) {
        if let Some(old) = self.source.conn.take() {
            self.cut(old);
        }
        self.next_conn += 1;
        let conn = self.next_conn;
        self.dialling = Some((conn, fresh));
        let latency = self.latency();
        if self.now + delay < self.no_link_until {
            let wait = delay + self.rng.between(MS, SECOND);
            return self.after(wait, Event::Dialled { conn, answer: Dial::Failed });
        }
        self.after(delay + latency, Event::DialAtSink { conn, fresh });
    }

    pub(super) fn dial_at_sink(&mut self, conn: u64, fresh: bool) {
        let latency = self.latency();
        if !self.sink.up || self.now < self.no_link_until {
            return self.after(latency, Event::Dialled { conn, answer: Dial::Failed });
        }
        if !fresh && self.sink.session != self.source.session {
            return self.after(latency, Event::Dialled { conn, answer: Dial::Lost });
        }
        self.conns.insert(conn, Conn::OPEN);
        if let Some(old) = self.sink.conn.replace(conn) {
            self.cut(old);
            // A driver may see the new connection before it sees the end of the old one.
            if self.rng.percent(60) {
                self.feed(Side::Sink, Input::ControlDown { clean: false });
            }
        }
        // That may have been the end of it.
        self.sink.conn = Some(conn);
        if fresh {
            self.sink.session = Some(conn);
        }
        if self.sink_machine.is_some() {
            self.feed(Side::Sink, Input::ControlUp);
        } else if fresh {
            self.answer_by_record();
        }
        self.after(latency, Event::Dialled { conn, answer: Dial::Up });
    }

    /// A fresh session that asks about a transfer: the record knows. spec: S-8
    fn answer_by_record(&mut self) {
        if let Some(record) = self.sink.disk.record() {
            let offer = Offer { epoch: record.epoch, ..self.offer.clone() };
            let sink = Sink::recover(self.plan.sink.clone(), offer, &record);
            self.sink_machines += 1;
            self.sink_machine = Some(sink.with_bug(self.planted.and_then(Planted::core)));
            self.said[1] = None;
            return self.feed(Side::Sink, Input::Start);
        }
        let text = "this transfer is not known here".to_owned();
        let unknown = ErrorFrame { code: ErrorCode::Unknown, lane: LaneId::CONTROL, position: 0, text };
        self.say(Side::Sink, &Frame::Error(unknown));
    }

    pub(super) fn dialled(&mut self, conn: u64, answer: Dial) {
        let Some((_, fresh)) = self.dialling.filter(|&(dialled, _)| dialled == conn) else { return };
        self.dialling = None;
        let alive = self.conns.get(&conn).is_some_and(|conn| conn.to_source.alive && conn.to_sink.alive);
        match answer {
            Dial::Up if alive => {
                self.source.conn = Some(conn);
                if fresh {
                    self.source.session = Some(conn);
                }
                let started = !std::mem::take(&mut self.source_waits);
                self.feed(Side::Source, if started { Input::ControlUp } else { Input::Start });
            }
            Dial::Lost => self.feed(Side::Source, Input::SessionLost),
            _ if self.source_waits => self.dial(true, SECOND / 2),
            _ => self.feed(Side::Source, Input::ControlDown { clean: false }),
        }
    }
}
