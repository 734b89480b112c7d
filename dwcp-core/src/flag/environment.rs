use std::ffi::OsStr;

/// The variable that takes a node back to version 1 when all else fails: set it to 1 and start the node again.
pub const FORCE_V1: &str = "DWCP_FORCE_V1";

/// What a value of [`FORCE_V1`] means. Unset, empty and `0` mean nothing. Whoever sets it to anything else wants
/// version 1, even if it is not the `1` that is documented: a node that would not start is no help to him.
pub fn forced_v1(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| !value.is_empty() && value != "0")
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
}
