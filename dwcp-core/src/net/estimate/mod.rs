//! What a transfer would cost: the machines and the encoder of a real one, over a link that is only computed.
//!
//! ```text
//!   guest ──read──> Press (hash, leave out, encode: real work, timed) ──bytes──> Link (rate, queue, round trip)
//!                     ^                                                             |
//!     Source <── Encoded, frames, acknowledgements ── virtual time ── frames ──> Sink
//! ```
//!
//! [`Source`](crate::session::Source) and [`Sink`](crate::session::Sink) cut, choose the effort, count rounds and decide when
//! to pause as ever, because they are told the time and know no socket. Only three things are not what a transfer has: bytes
//! take the time that the link's figures give them, the sink stores at once, and of a large image only some is read.
//! Nothing is sent and nothing is written.

mod advice;
mod experience;
mod link;
mod run;
mod sample;
#[cfg(test)]
mod tests;

use std::num::{NonZeroU16, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use dwcp_hde::Stats;

pub use self::advice::Advice;
use self::run::Run;
use crate::guest::{DirtyMap, Guest, GuestError, OldPages};
use crate::session::{Progress, SourceConfig, Verdict};

/// What is to be estimated.
#[derive(Clone, Debug)]
pub struct EstimateConfig {
    /// As for the transfer.
    pub source: SourceConfig,
    /// The link, in bytes a second as its interfaces count them, heads of TCP, IP and Ethernet included.
    pub link: NonZeroU64,
    /// Its round trip.
    pub rtt: Duration,
    /// Cores that encode.
    pub cores: NonZeroU16,
    /// Pages a second that the guest writes to while it runs, beside what it harvests itself. Each is taken to be another
    /// one until all were written to, and to pack as the guest's pages do on average, without a delta.
    pub written_pages: u64,
    /// Bytes of the state of its devices.
    pub device_state: usize,
    /// How many bytes of the image to read at most, spread evenly over it; the rest is taken to be alike. `None`: all. Must be
    /// `None` for a guest whose harvests bring pages: what is not read is no base.
    pub sample: Option<u64>,
    /// Pages that are zeros for certain, such as holes of a file.
    pub zeros: Option<DirtyMap>,
    /// A baseline that both ends hold.
    pub baseline: Option<Arc<dyn OldPages>>,
}

/// What a transfer would cost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Estimate {
    /// Of the source at its end: rounds, bytes, pages, downtime, all in the time of the link that was given. `methods` are
    /// those of the whole image, also when only a part was read.
    pub progress: Progress,
    /// From the first packet to the word that the guest runs at the sink, or to where the transfer would be given up.
    pub elapsed: Duration,
    /// Until the first round was acknowledged; all, if it ended in it.
    pub first_round: Duration,
    /// Bytes of TLS records, beside those of the extents.
    pub tls_bytes: u64,
    /// Bytes of Ethernet, IP and TCP heads.
    pub packet_bytes: u64,
    /// Bytes of lane 0 towards the sink.
    pub control_bytes: u64,
    /// Bytes of lane 0 towards the source.
    pub answer_bytes: u64,
    /// Share of the time in which the link carried something, and in which a core encoded, of the cores that could; 0..1.
    pub link_busy: f64,
    /// Likewise.
    pub cores_busy: f64,
    /// Bytes of the guest that one core read, hashed and encoded a second, as measured here and now.
    pub encode_rate: u64,
    /// Bytes that were read and are not known to be zeros.
    pub looked_at: u64,
    /// Bytes that are not known to be zeros and had to be looked at.
    pub to_look_at: u64,
    /// It would be given up, with the reason.
    pub not_converging: Option<Verdict>,
    /// What would help a guest that does not converge, or stands still for longer than its budget; empty for all others.
    pub advice: Advice,
}

/// Estimates a transfer of this guest. Blocks for as long as the guest takes to be read and encoded by one core.
///
/// # Errors
/// The guest cannot be read, or changes meanwhile.
pub fn estimate(guest: Arc<dyn Guest>, config: &EstimateConfig) -> Result<Estimate, GuestError> {
    let (mut estimate, experience) = Run::new(Arc::clone(&guest), config)?.finish()?;
    estimate.advice = advice::advise(guest, config, &estimate, experience);
    Ok(estimate)
}

/// `part` of `whole`, 0..1.
#[expect(clippy::as_conversions, reason = "a share for humans; 53 bits are plenty")]
fn share(part: u128, whole: u128) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) }
}

/// `count * times / of`, rounded down.
fn scaled(count: u64, times: u64, of: u64) -> u64 {
    u64::try_from(u128::from(count) * u128::from(times) / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

/// What was counted of `of` pages, for `times` like them.
fn scaled_stats(stats: &Stats, times: u64, of: u64) -> Stats {
    let mut sum = Stats::default();
    for (method, share) in stats.used() {
        let bytes_out = scaled(share.bytes_out, times, of);
        let (pages, nanos) = (scaled(share.pages, times, of), scaled(share.nanos, times, of));
        sum.add(method, dwcp_hde::MethodStats { pages, bytes_in: pages * 4096, bytes_out, nanos });
    }
    sum.head_bytes = scaled(stats.head_bytes, times, of);
    sum.look_nanos = scaled(stats.look_nanos, times, of);
    sum
}
