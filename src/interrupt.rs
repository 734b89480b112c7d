use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// Ctrl-C, SIGTERM as service managers send it, and SIGHUP of a terminal that went away.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// None under `nohup`, which shall keep its meaning.
    hang_up: Option<Signal>,
}

impl Interrupts {
    /// From now on none of them ends the process by itself.
    pub(crate) fn watch() -> Result<Self, Failure> {
        let watch = |kind| {
            signal(kind).map_err(|error| Failure::new(Exit::Failed, format!("cannot watch for signals: {error}")))
        };
        let hang_up = if hang_up_is_ignored() { None } else { Some(watch(SignalKind::hangup())?) };
        let (interrupt, terminate) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hang_up })
    }

    /// Waits for one. Cancel safe.
    pub(crate) async fn next(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = hang_up => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Whether who started us wants us to outlive the terminal: the mask of ignored signals, whose lowest
/// bit is SIGHUP, see proc(5).
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
