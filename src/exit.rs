use std::io::ErrorKind;
use std::process::ExitCode;

use dwcp_core::GuestError;
use dwcp_core::net::{EndpointError, IdentityError, RecordsError};
use dwcp_core::session::{Outcome, Owner, SessionError};
use dwcp_core::wire::AbortReason;

/// How a command ended, for scripts. The numbers never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    Failed,
    Usage,
    NotConverged,
    Integrity,
    Unauthorised,
    Unreachable,
    Interrupted,
    InDoubt,
    NotExercised,
    OverBudget,
}

/// For `--help`, where [`help`] shows the lines of one command; the same table stands in the README.
pub(crate) const TABLE: &str = "\
Exit codes:
  0  ok             what was asked for is done
  1  failed         it is not; the message says why and what to do
  2  usage          the command line is wrong
  3  not-converged  the guest writes faster than the link; it runs at the source
  4  integrity      bytes are not those sent or stored; none became visible
  5  unauthorised   one of the two does not trust the other
  6  unreachable    nobody answers, or the connection stayed lost
  7  interrupted    Ctrl-C at either end; the source is intact
  8  in-doubt       the source gave up; the sink may run or not: `dwcp resolve`
  9  not-exercised  demo only: too few rounds to prove anything
 10  over-budget    estimate only: the pause would be longer than --downtime";

impl Exit {
    /// Its word in `--json` and in [`TABLE`].
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotConverged => "not-converged",
            Self::Integrity => "integrity",
            Self::Unauthorised => "unauthorised",
            Self::Unreachable => "unreachable",
            Self::Interrupted => "interrupted",
            Self::InDoubt => "in-doubt",
            Self::NotExercised => "not-exercised",
            Self::OverBudget => "over-budget",
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotConverged => 3,
            Self::Integrity => 4,
            Self::Unauthorised => 5,
            Self::Unreachable => 6,
            Self::Interrupted => 7,
            Self::InDoubt => 8,
            Self::NotExercised => 9,
            Self::OverBudget => 10,
        }
    }

    /// How a session ended.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match (outcome.owner, &outcome.error) {
            (Owner::InDoubt, _) => Self::InDoubt,
            (Owner::Sink, None) => Self::Ok,
            (_, None) => Self::Failed,
            (_, Some(error)) => Self::of_error(error),
        }
    }

    fn of_error(error: &SessionError) -> Self {
        match error {
            SessionError::Integrity { .. } | SessionError::Guest(GuestError::Baseline { .. }) => Self::Integrity,
            SessionError::PeerReports(frame) if frame.code.is_integrity() => Self::Integrity,
            // What the receiver had stored, of which it alone knows the page.
            SessionError::PeerAborted { reason: AbortReason::Baseline, .. } => Self::Integrity,
            SessionError::NotConverging(_) => Self::NotConverged,
            SessionError::PeerAborted { reason: AbortReason::NotConverging, .. } => Self::NotConverged,
            SessionError::Unreachable { .. } | SessionError::LanesUsedUp { .. } => Self::Unreachable,
            SessionError::Cancelled | SessionError::ShuttingDown | SessionError::Superseded => Self::Interrupted,
            SessionError::PeerAborted { reason: AbortReason::Cancelled | AbortReason::Shutdown, .. } => {
                Self::Interrupted
            }
            _ => Self::Failed,
        }
    }
}

/// What stands below the options of a command: examples, and how it may end.
pub(crate) fn help(exits: &[Exit], examples: &str) -> String {
    let of_command = |line: &&str| exits.iter().any(|exit| line.split_whitespace().nth(1) == Some(exit.word()));
    let lines: Vec<_> = TABLE.lines().filter(of_command).collect();
    format!("{examples}\n\nExit codes:\n{}", lines.join("\n"))
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command ended otherwise than hoped: a sentence that says what happened, one that says what
/// to do, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) what: String,
    pub(crate) advice: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), advice: None }
    }

    pub(crate) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        let exit = match &error {
            EndpointError::Unauthorised { .. } => Exit::Unauthorised,
            EndpointError::Refused { frame, .. } if frame.code.is_integrity() => Exit::Integrity,
            error if error.is_unreachable() => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let failure = Self::new(exit, error.to_string());
        match &error {
            EndpointError::Resolve { .. } => failure.advise("Check the host in --to, or use its address."),
            EndpointError::Listen { source, .. } => failure.advise(match source.kind() {
                ErrorKind::AddrInUse => "Choose another port, or stop who uses it.",
                ErrorKind::AddrNotAvailable => {
                    "That is no address of this host: take one that `ip address` lists, or 0.0.0.0 for all."
                }
                ErrorKind::PermissionDenied => "Choose a port above 1023, or run as one who may use that one.",
                _ => "Check the address in --listen, such as 0.0.0.0:7070.",
            }),
            EndpointError::Connect { .. } => {
                failure.advise("Check that `dwcp receive` runs there, and that nothing blocks the port.")
            }
            EndpointError::Timeout { .. } | EndpointError::Lost { .. } => {
                failure.advise("Check that `dwcp receive` listens there, and try again.")
            }
            EndpointError::Negotiation { .. } => {
                failure.advise("Bring both nodes to versions that have one in common.")
            }
            _ => failure,
        }
    }
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        let failure = Self::new(Exit::Failed, error.to_string());
        match error {
            GuestError::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound => failure.advise("Check the path."),
                ErrorKind::PermissionDenied => {
                    failure.advise("Give this user the right to it, or run as one who has it.")
                }
                _ => failure,
            },
            _ => failure,
        }
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

/// Whether a disk, or somebody's share of it, is full.
fn is_full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl From<RecordsError> for Failure {
    fn from(error: RecordsError) -> Self {
        let failure = Self::new(Exit::Failed, error.to_string());
        match error {
            RecordsError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                failure.advise("Run as the user whose `dwcp` keeps its state there, or give this user the right to it.")
            }
            RecordsError::Io { source, .. } if is_full(source.kind()) => failure.advise(
                "Free some space there: a few files of a KiB are written for each transfer. Then run it again.",
            ),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_codes() {
        for (line, code) in TABLE.lines().skip(1).zip(0..) {
            let exit = [
                Exit::Ok,
                Exit::Failed,
                Exit::Usage,
                Exit::NotConverged,
                Exit::Integrity,
                Exit::Unauthorised,
                Exit::Unreachable,
                Exit::Interrupted,
                Exit::InDoubt,
                Exit::NotExercised,
                Exit::OverBudget,
            ][usize::from(code)];
            assert_eq!(exit.code(), code);
            assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [&code.to_string(), exit.word()]);
        }
        assert_eq!(TABLE.lines().count(), 12);
    }

    /// Each end says the same of a baseline that is damaged at the receiver, and of a disk that is full there.
    #[test]
    fn what_was_stored_otherwise_is_damage_at_both_ends() {
        let of = |error| Exit::of(&Outcome { owner: Owner::Source, error: Some(error) });
        let told = |reason| of(SessionError::PeerAborted { reason, text: String::new() });
        let baseline = GuestError::Baseline {
            digest: dwcp_core::wire::Digest([0; 32]),
            name: dwcp_core::wire::Name::new("golden").unwrap(),
            region: dwcp_core::RegionId(0),
            page: 17,
            why: String::new(),
        };
        assert_eq!(
            (of(SessionError::Guest(baseline)), told(AbortReason::Baseline)),
            (Exit::Integrity, Exit::Integrity)
        );
        let full = GuestError::NoSpace { what: String::new() };
        assert_eq!((of(SessionError::Guest(full)), told(AbortReason::LocalFailure)), (Exit::Failed, Exit::Failed));
    }

    #[test]
    fn doubt_is_told_before_its_cause() {
        let cancelled = |owner| Exit::of(&Outcome { owner, error: Some(SessionError::Cancelled) });
        assert_eq!(cancelled(Owner::InDoubt), Exit::InDoubt);
        assert_eq!(cancelled(Owner::Source), Exit::Interrupted);
        assert_eq!(Exit::of(&Outcome { owner: Owner::Sink, error: None }), Exit::Ok);
    }
}
