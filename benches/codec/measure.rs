//! Runs every method on a round, each in turn, and takes medians.

use std::time::Duration;

use anyhow::ensure;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::options::Options;
use crate::rounds::Round;
use crate::{dwcp, peers, xbzrle};

/// One way to send a round. It keeps what it made, so that encoding and decoding can be timed apart.
pub trait Method {
    fn name(&self) -> String;
    fn encode(&mut self);
    /// Everything that would travel, of the last `encode`.
    fn bytes_out(&self) -> usize;
    /// Undoes the last `encode`, and hands pages with the place in the image where they belong (with `None`: the next
    /// pages of `solid`), in any number.
    fn decode(&mut self, put: &mut dyn FnMut(Place<'_>, &[u8]));
}

/// Where decoded pages belong.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// The next pages of [`Round::solid`].
    Next,
    /// These places of the image.
    At(&'a [usize]),
    /// The whole image.
    Image,
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub workload: String,
    pub round: String,
    pub method: String,
    /// Pages that are not zero, and those that are.
    pub pages: usize,
    pub zero_pages: usize,
    /// Bytes of the pages that are not zero.
    pub bytes_in: usize,
    /// All that travels: frame and extent heads, page lists, digests, blocks.
    pub bytes_out: usize,
    pub saved_pct: f64,
    pub encode_mb_s: f64,
    pub decode_mb_s: f64,
}

/// A method slower than this is measured once: its time is long enough.
const LONG: Duration = Duration::from_millis(1500);
/// A measurement is repeated until it is this long: the clock of a thread is exact, its caches are not.
const SHORT: Duration = Duration::from_millis(60);

/// The rows of one round.
pub fn round(round: &Round<'_>, options: &Options) -> anyhow::Result<Vec<Row>> {
    if round.pages.is_empty() {
        return Ok(Vec::new());
    }
    let mut methods = dwcp::methods(round);
    methods.extend(peers::methods(round, options.slow));
    methods.extend(xbzrle::method(round));
    if let Some(word) = &options.method {
        methods.retain(|method| method.name().contains(word));
    }
    let mut times = vec![(Vec::new(), Vec::new()); methods.len()];
    for rep in 0..options.reps {
        for (method, (encodes, decodes)) in methods.iter_mut().zip(&mut times) {
            if encodes.first().is_some_and(|first| *first > LONG) {
                continue;
            }
            encodes.push(timed(|| method.encode()));
            if rep == 0 {
                check(round, method.as_mut())?;
            }
            decodes.push(timed(|| {
                method.decode(&mut |_, plain| {
                    std::hint::black_box(plain);
                });
            }));
        }
    }
    let rows = methods.iter().zip(&mut times);
    Ok(rows.map(|(method, (encodes, decodes))| row(round, method.as_ref(), median(encodes), median(decodes))).collect())
}

fn row(round: &Round<'_>, method: &dyn Method, encode: Duration, decode: Duration) -> Row {
    let (bytes_in, bytes_out) = (round.solid.len(), method.bytes_out());
    let rate = |time: Duration| bytes_in as f64 / 1e6 / time.as_secs_f64().max(1e-9);
    Row {
        workload: round.workload.to_owned(),
        round: round.name.clone(),
        method: method.name(),
        pages: bytes_in / dwcp_hde::PAGE_BYTES,
        zero_pages: round.zero_pages,
        bytes_in,
        bytes_out,
        saved_pct: 100.0 * (1.0 - bytes_out as f64 / bytes_in.max(1) as f64),
        encode_mb_s: rate(encode),
        decode_mb_s: rate(decode),
    }
}

/// Compares a whole decode with the input.
fn check(round: &Round<'_>, method: &mut dyn Method) -> anyhow::Result<()> {
    let name = method.name();
    let (mut solid, mut different) = (0, 0_usize);
    let mut placed = vec![false; round.image.len() / dwcp_hde::PAGE_BYTES];
    let mut whole = false;
    method.decode(&mut |place, plain| match place {
        Place::Next => {
            different += usize::from(round.solid.get(solid..solid + plain.len()) != Some(plain));
            solid += plain.len();
        }
        Place::At(places) => {
            for (page, place) in plain.chunks(dwcp_hde::PAGE_BYTES).zip(places) {
                different += usize::from(round.page(*place) != page);
                placed[*place] = true;
            }
        }
        Place::Image => {
            different += usize::from(plain != round.image);
            whole = true;
        }
    });
    let known = |place: usize| {
        round.old_page(place).map_or_else(|| dwcp_hde::is_zero(round.page(place)), |old| old == round.page(place))
    };
    let complete = whole || solid == round.solid.len() || round.pages.iter().all(|(_, at)| placed[*at] || known(*at));
    ensure!(
        different == 0 && complete,
        "{} {}: {name} does not give back its input ({different} differences): its rows would be worth nothing",
        round.workload,
        round.name
    );
    Ok(())
}

/// CPU time of `work`, of one run. Other work on the machine does not count.
fn timed(mut work: impl FnMut()) -> Duration {
    let start = cpu();
    let mut runs = 0;
    loop {
        work();
        runs += 1;
        let spent = cpu().saturating_sub(start);
        if spent >= SHORT {
            return spent / runs;
        }
    }
}

pub fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).expect("after 0"), u32::try_from(time.tv_nsec).expect("below 1e9"))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
