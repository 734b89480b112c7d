//! Damaged bytes of more than a hundred classes: all refused by typed errors, nothing of them applied. The large
//! campaign is `just malformed`.

use dwcp_sim::malformed::{bit_flips, malformed};

#[test]
fn damaged_frames_and_extents_are_refused() {
    let tally = malformed(20_000, 2);
    assert_eq!(tally.inputs(), 20_000);
    assert!(tally.refused.len() >= 100, "only {} classes: {:?}", tally.refused.len(), tally.refused.keys());
}

#[test]
fn a_bit_flipped_inside_the_channel_is_never_applied() {
    let flips = bit_flips(20_000, 2);
    assert_eq!(flips.refused + flips.waits + flips.same, 20_000);
    assert!(flips.refused > 19_500, "{flips:?}");
}
