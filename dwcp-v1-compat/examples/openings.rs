//! So many malformed openings of connections, through detection: `cargo run --release --example openings -- 1000000 1`
//! (how many, and the seed). Each must get an answer, the same as that of a slow twin, without memory that grows.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use dwcp_core::session::Time;
use dwcp_v1_compat::detect::{GroupCounts, Groups, GroupsConfig, Opening, Route, Sight};
use dwcp_v1_compat::message::ConnectionId;
use dwcp_v1_compat::wire::Framing;

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (count, seed) = match numbers.as_slice() {
        [] => (1_000_000, 1),
        [count] => (*count, 1),
        [count, seed, ..] => (*count, *seed),
    };
    match run(count, seed) {
        Ok(done) => {
            println!(
                "{count} openings: {:?}, at most {} waiting, {} transfers",
                done.counts, done.waiting, done.groups
            );
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("seed {seed}: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Done {
    /// By verdict.
    pub(crate) counts: GroupCounts,
    /// The most connections that waited at a time.
    pub(crate) waiting: usize,
    /// The most transfers at a time.
    pub(crate) groups: usize,
}

/// Feeds `count` openings, one byte at a time.
pub(crate) fn run(count: u64, seed: u64) -> Result<Done, String> {
    let mut dice = Dice(seed ^ 0x9e37_79b9_7f4a_7c15);
    let config = GroupsConfig { most_waiting: 512, most_connections: 32, ..GroupsConfig::default() };
    let mut groups = Groups::new(config);
    let mut done = Done { counts: groups.counts(), waiting: 0, groups: 0 };
    let mut open = Vec::new();
    for number in 0..count {
        let now = Time::after_epoch(Duration::from_millis(number));
        let connection = ConnectionId(u32::try_from(number % (1 << 32)).unwrap_or(0));
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, dice.byte()));
        while groups.expired(now).is_some() {}
        let accepted = groups.accepted(now, connection, address).is_ok();
        let bytes = opening(&mut dice);
        let framing = if dice.below(2) == 0 { Framing::Mst8 } else { Framing::Amst16 };
        let sight = look(framing, &bytes)?;
        if accepted && sight != Sight::More {
            match groups.spoke(connection, sight) {
                Route::Start(group) => open.push(group),
                Route::Close(_) if dice.below(200) == 0 => {
                    for group in open.drain(..) {
                        let whole = dice.below(2) == 0;
                        drop(if whole { groups.ended(group) } else { groups.failed(now, group) });
                    }
                }
                _ => {}
            }
        }
        let (waiting, under_way) = groups.load();
        if waiting > config.most_waiting || under_way > config.most_groups {
            return Err(format!("opening {number}: {waiting} wait, {under_way} transfers"));
        }
        done.waiting = done.waiting.max(waiting);
        done.groups = done.groups.max(under_way);
    }
    done.counts = groups.counts();
    Ok(done)
}

/// The verdict, byte by byte, beside that of the twin on each prefix.
fn look(framing: Framing, bytes: &[u8]) -> Result<Sight, String> {
    let mut seen = Opening::new(framing);
    let mut verdict = Sight::More;
    for (at, byte) in bytes.iter().enumerate() {
        let sight = seen.feed(*byte);
        let prefix = bytes.get(..=at).unwrap_or_default();
        verdict = if verdict == Sight::More { twin(framing, prefix) } else { verdict };
        if sight != verdict || seen.bytes().len() > 16 {
            return Err(format!("{framing}: {prefix:02x?} is {sight:?}, the twin says {verdict:?}"));
        }
    }
    Ok(verdict)
}

/// Slow and obvious: numbers instead of fields.
fn twin(framing: Framing, bytes: &[u8]) -> Sight {
    let number = |from: usize, to: usize| {
        let field = bytes.get(from..to)?;
        Some(field.iter().fold(0_u64, |number, byte| number * 256 + u64::from(*byte)))
    };
    let sight = |good: bool, enough: bool, found: Sight| match (good, enough) {
        (false, _) => Sight::Garbage,
        (true, true) => found,
        (true, false) => Sight::More,
    };
    let within = |value: Option<u64>, least: u64, most: u64| value.is_none_or(|value| value >= least && value <= most);
    match bytes {
        [] => Sight::More,
        [0x16, ..] => {
            let good = within(number(1, 2), 3, 3)
                && within(number(2, 3), 1, 4)
                && within(number(3, 4), 0, 0x40)
                && within(number(3, 5), 5, 16384)
                && within(number(5, 6), 1, 1);
            sight(good, bytes.len() >= 6, Sight::Tls)
        }
        [0 | 1, ..] => {
            let (enough, length, most) = match framing {
                Framing::Mst8 => (8, number(4, 8), (1 << 25) - 1),
                Framing::Amst16 => (16, number(8, 12), (1 << 20) - 1),
            };
            if bytes.len() < enough {
                return Sight::More;
            }
            let first = framing == Framing::Mst8 || number(0, 4) != Some(0) || number(4, 8) == Some(0);
            let good = first && within(number(0, 4), 0, most) && within(length, 1, 16 << 20);
            sight(good, true, Sight::V1 { first: number(0, 4) == Some(0) })
        }
        _ => Sight::Garbage,
    }
}

/// Noise, and openings that are almost right.
fn opening(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = match dice.below(4) {
        0 => vec![0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3],
        1 => vec![0, 0, 0, 0, 0, 1, 0, 0, 7, 7, 7, 7],
        2 => vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 9],
        _ => (0..dice.below(20)).map(|_| dice.byte()).collect(),
    };
    for _ in 0..dice.below(3) {
        let (at, byte) = (dice.below(20), dice.byte());
        if let Some(place) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
            *place = byte;
        }
    }
    bytes.truncate(usize::try_from(dice.below(24)).unwrap_or(0));
    bytes
}

/// SplitMix64: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn byte(&mut self) -> u8 {
        let [byte, ..] = self.next().to_le_bytes();
        byte
    }
}
