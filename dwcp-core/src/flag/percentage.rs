use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::decision::BUCKETS;
use super::node::start;

/// A share of all nodes in steps of 0.001 %, 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percentage(u32);

/// Below which bucket a node is in, 0 (none) to 100000 (all).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold(u32);

/// Why a text is no percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the percentage {0} is not a number from 0 to 100 with at most three decimals")]
pub struct PercentageError(String);

/// Why a number is no threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the threshold {0} is not from 0 to {BUCKETS}")]
pub struct ThresholdError(u64);

impl Percentage {
    /// Everybody.
    pub const ALL: Self = Self(BUCKETS);

    /// In thousandths of a per cent, 0 to 100000.
    pub fn thousandths(self) -> u32 {
        self.0
    }

    /// The threshold that it stands for where a document names none.
    pub fn threshold(self) -> Threshold {
        Threshold(self.0)
    }

    /// So many of `nodes`: the nearest number, but one at least for anything above 0.
    pub fn of(self, nodes: usize) -> usize {
        let nearest = (u128::from(self.0) * wide(nodes) + u128::from(BUCKETS / 2)) / u128::from(BUCKETS);
        let nearest = usize::try_from(nearest).unwrap_or(nodes).min(nodes);
        if self.0 > 0 { nearest.max(1).min(nodes) } else { 0 }
    }
}

fn wide(count: usize) -> u128 {
    u128::try_from(count).unwrap_or(u128::MAX)
}

impl Threshold {
    /// Everybody.
    pub const ALL: Self = Self(BUCKETS);

    /// # Errors
    /// It is above 100000.
    pub fn new(value: u64) -> Result<Self, ThresholdError> {
        u32::try_from(value).ok().filter(|&value| value <= BUCKETS).map(Self).ok_or(ThresholdError(value))
    }

    /// The number of buckets that are in.
    pub fn value(self) -> u32 {
        self.0
    }

    /// Just above this bucket, so that it is in.
    pub(super) fn above(bucket: u32) -> Self {
        Self(bucket.saturating_add(1).min(BUCKETS))
    }
}

impl FromStr for Percentage {
    type Err = PercentageError;

    fn from_str(text: &str) -> Result<Self, PercentageError> {
        let parse = || {
            let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(whole) || !digits(decimals) {
                return None;
            }
            // 12.50 is 12.5; a fourth decimal that counts is not ours to round.
            let decimals = decimals.trim_end_matches('0');
            if decimals.len() > 3 {
                return None;
            }
            let fraction: u32 = format!("{decimals:0<3}").parse().ok()?;
            let value = whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(fraction)?;
            (value <= BUCKETS).then_some(Self(value))
        };
        parse().ok_or_else(|| PercentageError(start(text)))
    }
}

impl fmt::Display for Percentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 1000, self.0 % 1000);
        if fraction == 0 {
            write!(f, "{whole}")
        } else {
            write!(f, "{whole}.{}", format!("{fraction:03}").trim_end_matches('0'))
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Percentage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Its shortest text is exact, a float's thousandfold is not.
        serde_json::Number::deserialize(deserializer)?.to_string().parse().map_err(D::Error::custom)
    }
}

impl Serialize for Percentage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u32(self.0 / 1000)
        } else {
            serializer.serialize_f64(f64::from(self.0) / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_exact_to_a_thousandth_or_refused() {
        for (text, thousandths) in [("0", 0), ("10", 10_000), ("0.5", 500), ("12.345", 12_345), ("100.0", 100_000)] {
            assert_eq!(text.parse(), Ok(Percentage(thousandths)), "{text}");
        }
        for text in ["", "-1", "+1", "100.001", "101", "1e1", "NaN", "0.0001", ".5", "5.", "1.2.3", "٣", "99999999999"]
        {
            assert!(text.parse::<Percentage>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_percentage_survives_json() {
        for value in 0..=BUCKETS {
            let text = serde_json::to_string(&Percentage(value)).unwrap();
            assert_eq!(serde_json::from_str::<Percentage>(&text).unwrap(), Percentage(value), "{text}");
            assert_eq!(Percentage(value).to_string().parse(), Ok(Percentage(value)));
        }
        assert!(serde_json::from_str::<Percentage>("\"10\"").is_err(), "a text is no number");
    }

    #[test]
    fn a_share_of_nodes_is_the_nearest_number_but_never_none() {
        let of = |text: &str, nodes| text.parse::<Percentage>().unwrap().of(nodes);
        assert_eq!([of("10", 10), of("10", 14), of("10", 15), of("50", 3)], [1, 1, 2, 2]);
        assert_eq!([of("0.001", 10), of("0", 10), of("100", 7), of("99.9", 10), of("100", 0)], [1, 0, 7, 10, 0]);
    }
}
