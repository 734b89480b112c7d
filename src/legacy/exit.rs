use std::io::ErrorKind;

use dwcp_v1_compat::message::DefectKind;
use dwcp_v1_compat::net::TransferError;

use crate::exit::{Exit, Failure};

/// How a version 1 transfer that failed ends the command.
pub(super) fn failure(error: &TransferError) -> Failure {
    let exit = match error {
        TransferError::Defect(defect) if matches!(defect.kind(), DefectKind::Silent | DefectKind::Slow) => {
            Exit::Unreachable
        }
        TransferError::Defect(_) | TransferError::Content(_) | TransferError::Blocks(_) => Exit::Integrity,
        TransferError::MissingBlocks { .. } => Exit::Integrity,
        TransferError::Lost { .. }
        | TransferError::Stalled { .. }
        | TransferError::Slow { .. }
        | TransferError::Unconnected { .. } => Exit::Unreachable,
        TransferError::Io { source, .. } | TransferError::Connect { source, .. }
            if is_of_the_network(source.kind()) =>
        {
            Exit::Unreachable
        }
        TransferError::Cancelled => Exit::Interrupted,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

fn is_of_the_network(kind: ErrorKind) -> bool {
    use ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(kind, ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | TimedOut)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn exit_codes_tell_who_is_to_be_looked_at() {
        let of = |error: TransferError| failure(&error).exit;
        assert_eq!(of(TransferError::Stalled { after: Duration::from_secs(1) }), Exit::Unreachable);
        let slow = TransferError::Slow { after: Duration::from_secs(120), took: 1, least: 1 << 20, left: 7 };
        assert_eq!(of(slow), Exit::Unreachable);
        assert_eq!(of(TransferError::MissingBlocks { missing: 1, blocks: 2 }), Exit::Integrity);
        assert_eq!(of(TransferError::Cancelled), Exit::Interrupted);
        assert_eq!(of(TransferError::Config("no")), Exit::Failed);
        let io = |kind: ErrorKind| of(TransferError::Connect { peer: "a".into(), source: kind.into() });
        assert_eq!((io(ErrorKind::ConnectionRefused), io(ErrorKind::StorageFull)), (Exit::Unreachable, Exit::Failed));
    }
}
