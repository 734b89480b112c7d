//! The body of the fuzz target `flag_document`: what a node is given as flag documents, one after the other.

use std::time::Duration;

use dwcp_core::flag::{Flag, FlagDocument, FlagVersion, Keeper, NodeName, Origin, RefusalKind, Standing, Threshold};
use dwcp_core::session::Time;

/// For how long a document holds that cannot be read any more, in looks.
const LOOKS: u32 = 3;

/// Bytes as documents, parted by 0xff (which is no UTF-8), and read at one look each: whatever they are, a node has a
/// decision, its version never falls, and what is refused is counted and changes nothing until the last good one is
/// too old.
pub fn check_flag_document(data: &[u8]) {
    let node = NodeName::new("node-7").unwrap();
    let look = Duration::from_secs(1);
    let mut keeper = Keeper::new(node.clone(), Origin::InProcess, look * LOOKS, None);
    let mut failed = 0;
    for (bytes, now) in data.split(|&byte| byte == 0xff).zip(1_u32..) {
        let now = Time::after_epoch(look * now);
        let (before, counted) = (keeper.snapshot(), refusals(&keeper));
        keeper.tick(now);
        match keeper.load(now, bytes) {
            Ok(()) => {
                failed = 0;
                let document = FlagDocument::parse(bytes).unwrap();
                check_document(&document, &node);
                let snapshot = keeper.snapshot();
                assert_eq!((snapshot.version(), snapshot.standing()), (Some(document.version), Standing::Current));
                assert!(snapshot.version() >= before.version(), "an older document was taken");
                assert_eq!(snapshot.v3(), document.decide(Flag::V3, &node).on);
                assert_eq!(refusals(&keeper), counted);
            }
            Err(refusal) => {
                failed += 1;
                let after = keeper.snapshot();
                assert!(!refusal.to_string().is_empty() && after.trouble().is_some());
                assert_eq!(refusals(&keeper), counted + 1);
                assert_eq!(after.version(), before.version(), "what is refused changes nothing");
                let good = after.version().is_some();
                assert_eq!(after.standing() == Standing::Expired, good && failed > LOOKS);
                assert_eq!(after.v3(), before.v3() && failed <= LOOKS);
            }
        }
    }
}

fn refusals(keeper: &Keeper) -> u64 {
    let stats = keeper.stats();
    RefusalKind::ALL.into_iter().map(|kind| stats.refused(kind)).sum()
}

/// What was read can be written and read again, and a higher threshold takes nobody off.
fn check_document(document: &FlagDocument, node: &NodeName) {
    assert!(document.version <= FlagVersion::LAST);
    // Line ends and blanks may make it longer than a document may be.
    if let Ok(text) = document.render() {
        assert_eq!(&FlagDocument::parse(text.as_bytes()).unwrap(), document);
    }
    for flag in Flag::ALL {
        let Some(rule) = document.rule(flag) else { continue };
        let mut higher = rule.clone();
        higher.threshold =
            Some(Threshold::new(u64::from(rule.effective_threshold().value()).midpoint(100_000)).unwrap());
        assert!(!rule.decide(flag, node).on || higher.decide(flag, node).on, "raising removed a node");
    }
}
