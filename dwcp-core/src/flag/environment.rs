use std::ffi::OsStr;

use super::reason::{Reason, ReasonError};

/// The variable that takes a node back to version 1 when all else fails: set it to 1 and start the node again. Set to
/// `integrity` or `security` it also says that what version 3 applied is not to be trusted.
pub const FORCE_V1: &str = "DWCP_FORCE_V1";

/// What a value of [`FORCE_V1`] means. Unset, empty and `0` mean nothing. Whoever sets it to anything else wants
/// version 1, even if it is not the `1` that is documented: a node that would not start is no help to him.
pub fn forced_v1(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| !value.is_empty() && value != "0")
}

/// Why, if a value of [`FORCE_V1`] says that what version 3 applied is not to be trusted; also misspelt.
pub fn forced_distrust(value: Option<&OsStr>) -> Option<Reason> {
    let reason = match value?.to_str()?.trim().parse() {
        Err(ReasonError::Nearly { meant, .. }) => meant.parse().ok()?,
        parsed => parsed.ok()?,
    };
    Some(reason).filter(Reason::discards_applied)
}

/// Whether [`FORCE_V1`] is set for this process.
pub fn is_forced_v1() -> bool {
    forced_v1(std::env::var_os(FORCE_V1).as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sets_it_means_it() {
        let forced = |text: &str| forced_v1(Some(OsStr::new(text)));
        assert!(forced("1") && forced("true") && forced("yes") && forced(" "));
        assert!(!forced("0") && !forced("") && !forced_v1(None));
    }

    #[test]
    fn whoever_says_why_is_heard_even_if_he_mistypes() {
        let distrust = |text: &str| forced_distrust(Some(OsStr::new(text)));
        assert_eq!((distrust("integrity"), distrust("Integrity ")), (Some(Reason::Integrity), Some(Reason::Integrity)));
        assert_eq!(distrust("securty"), Some(Reason::Security));
        assert_eq!((distrust("1"), distrust("performance"), forced_distrust(None)), (None, None, None));
    }
}
