//! What to look at when a version 1 transfer failed. The peer hears nothing of it and most of its settings are not on the wire, so
//! the option that is to be as at the peer must be named here.

use dwcp_v1_compat::message::{Defect, Refusal};
use dwcp_v1_compat::net::TransferError;
use dwcp_v1_compat::wire::blocks::BlockError;
use dwcp_v1_compat::wire::{ContentError, PackError, PacketError};

const FORM: &str =
    "Is --v1-form as the peer sends it: memory (one packet), disk (blocks), or plain (bytes as they are)?";
const DISK: &str =
    "Are --v1-block and --v1-size as the peer has them, and does it send a disk? If not: --v1-form memory or plain.";
const DAMAGED: &str =
    "Bytes changed on the way or at the peer: send it again, and look at the link and the peer's memory.";
const FRAMING: &str =
    "Is the peer set to the same --v1 (amst16 or mst8), and over mst8 to the same --v1-chunk and --v1-size?";

/// At `dwcp receive`.
pub(super) fn receiving(error: &TransferError) -> Option<&'static str> {
    match error {
        TransferError::Content(error) => Some(of_content(error)),
        TransferError::Blocks(BlockError::Again { .. }) => {
            Some("Either the peer repeats itself, or --v1-form disk is wrong for what it sends.")
        }
        TransferError::Blocks(_) => Some(DISK),
        TransferError::MissingBlocks { .. } => Some(
            "Make the peer send all blocks: one that moved this disk before may send changes only. Are --v1-block and \
             --v1-size as the peer has them?",
        ),
        TransferError::Defect(defect) => of_defect(defect),
        _ => None,
    }
}

fn of_content(error: &ContentError) -> &'static str {
    match error {
        ContentError::OtherBaseline { .. } => {
            "Name the older image that the peer refers to with --v1-baseline FILE, and with --v1-baseline-of what the peer \
             calls its guest; or make the peer send in full. If it does, --v1-size (with --v1-form disk: or --v1-block) is \
             not as at the peer."
        }
        ContentError::Ambiguous { .. } => {
            "Leave out --v1-baseline if the peer sends in full; if it sends changes, make it send in full."
        }
        ContentError::Length { .. } => {
            "Set --v1-size to the bytes that the peer's image has; with --v1-form disk --v1-block must be as at the peer, too."
        }
        ContentError::Delta(_) => {
            "Is --v1-baseline the very image that the peer has under that name? If in doubt, make the peer send in full."
        }
        ContentError::Packet(PacketError::Content { .. }) => {
            "Is --v1-size as large as the peer's image, and with --v1-form disk --v1-block as at the peer?"
        }
        ContentError::Packet(PacketError::Corrupt { .. }) => DAMAGED,
        ContentError::Packet(PacketError::OutOfMemory) => "Free memory here, and send it again.",
        _ => FORM,
    }
}

fn of_defect(defect: &Defect) -> Option<&'static str> {
    match defect {
        Defect::Id { .. } | Defect::Length { .. } | Defect::Offset { .. } => Some(FRAMING),
        Defect::Missing { .. } => Some(
            "The peer was interrupted, or over mst8 its image is smaller than --v1-size or its chunks are not --v1-chunk: \
             look there, then send it again.",
        ),
        Defect::MixedTotals { .. } | Defect::Duplicate { .. } | Defect::Flood { .. } => Some(
            "Does one address send two images at once? Version 1 cannot tell them apart: send one after the other.",
        ),
        Defect::Slow { .. } => Some("Look at the link and at the peer's disk, then send it again."),
        _ => None,
    }
}

/// At `dwcp send`.
pub(super) fn sending(error: &TransferError) -> Option<&'static str> {
    match error {
        TransferError::Pack(PackError::TooLarge { .. }) | TransferError::Refused(Refusal::TooLarge { .. }) => Some(
            "Use --v1-form disk if the peer takes it as a disk, or leave out --v1 and update the peer. Nothing was sent.",
        ),
        TransferError::Refused(Refusal::ChunkBytes { .. } | Refusal::TooManyChunks { .. }) => {
            Some("Set the peer to other chunks, and name those with --v1-chunk. Nothing was sent.")
        }
        TransferError::Connect { .. } => {
            Some("Does the peer run, and is --to where it listens? Nothing was sent; the image here is intact.")
        }
        TransferError::Unconnected { .. } => Some(
            "Does the peer run, is --to where it listens (an mst8 peer dials to --v1-listen), and is --v1-connections as it is \
             set? The image here is intact.",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use dwcp_v1_compat::message::ConnectionId;
    use dwcp_v1_compat::wire::delta::DeltaError;

    use super::*;

    #[test]
    fn each_error_of_what_a_peer_sends_names_the_options_that_may_be_wrong() {
        let content: [(ContentError, &[&str]); 6] = [
            (PacketError::Tier { tier: 9 }.into(), &["--v1-form"]),
            (PacketError::Flag { flag: 9 }.into(), &["--v1-form"]),
            (ContentError::OtherBaseline { bytes: 1 }, &["--v1-baseline FILE", "--v1-baseline-of", "--v1-size"]),
            (ContentError::Ambiguous { bytes: 1 }, &["--v1-baseline"]),
            (ContentError::Length { made: 1, expected: 2 }, &["--v1-size", "--v1-block"]),
            (DeltaError::Length { at: 1 }.into(), &["--v1-baseline"]),
        ];
        let content = content.map(|(error, options)| (TransferError::from(error), options));
        let connection = ConnectionId(0);
        let id = Defect::Id { connection, at: 0, id: 9, chunks: 2 };
        let others: [(TransferError, &[&str]); 4] = [
            (BlockError::Id { at: 0, id: 9, blocks: 2 }.into(), &["--v1-block", "--v1-size", "--v1-form"]),
            (TransferError::MissingBlocks { missing: 1, blocks: 2 }, &["--v1-block", "--v1-size"]),
            (id.into(), &["--v1 (amst16 or mst8)", "--v1-chunk", "--v1-size"]),
            (Defect::Missing { first: 0, chunks: 1, bytes: 1 }.into(), &["--v1-size", "--v1-chunk"]),
        ];
        for (error, options) in content.into_iter().chain(others) {
            let advice = receiving(&error).unwrap_or_default();
            for option in options {
                assert!(advice.contains(option), "{error}: {advice}");
            }
        }
        let large = sending(&PackError::TooLarge { content: 1 << 30 }.into()).unwrap();
        assert!(large.contains("--v1-form disk"), "{large}");
    }
}
