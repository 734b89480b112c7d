//! Quantities as operators write them.

use std::fmt;
use std::net::Ipv6Addr;
use std::num::{NonZeroU16, NonZeroU64};
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use dwcp_core::wire::limits::MAX_LANES;

use crate::receive;

/// `300ms`, `30s`, `2m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write a number and ms, s, m or h, such as 300ms");
    let (number, unit) = Number::before(text).ok_or_else(wrong)?;
    let nanos = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(wrong()),
    };
    number.of(nanos, 1).map(Duration::from_nanos).ok_or_else(wrong)
}

/// Bytes: a number with B, KiB, MiB, GiB or TiB. A bare number is refused: who types `--limit 20` does not mean 20 bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is no size; write a number above 0 and B (bytes), KiB, MiB, GiB or TiB, such as 4GiB");
    let (number, unit) = Number::before(text).ok_or_else(wrong)?;
    let unit = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.of(unit, 1).filter(|&bytes| bytes > 0).ok_or_else(wrong)
}

/// How long something is to the byte: as [`size`], or a bare number of bytes, as `stat` prints it.
pub(crate) fn length(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(bytes) if bytes > 0 => Ok(bytes),
        Ok(_) => Err(format!("`{text}` is no length; write bytes above 0, or a size such as 4GiB")),
        Err(_) => size(text),
    }
}

/// A rate: `100mbit` and `1.5gbit` are bits, `50MB` and `1GB` bytes, per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bandwidth(pub(crate) NonZeroU64);

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no bandwidth; write a number above 0 and kbit, mbit, gbit or tbit (bits) or kB, MB, GB or TB \
                 (bytes) a second, such as 100mbit or 1.5gbit"
            )
        };
        let (number, unit) = Number::before(text.strip_suffix("/s").unwrap_or(text)).ok_or_else(wrong)?;
        let (factor, divisor) = match unit {
            "kbit" => (1_000, 8),
            "mbit" => (1_000_000, 8),
            "gbit" => (1_000_000_000, 8),
            "tbit" => (1_000_000_000_000, 8),
            "kB" => (1_000, 1),
            "MB" => (1_000_000, 1),
            "GB" => (1_000_000_000, 1),
            "TB" => (1_000_000_000_000, 1),
            _ => return Err(wrong()),
        };
        let bytes = number.of(factor, divisor);
        bytes.and_then(NonZeroU64::new).map(Self).ok_or_else(wrong)
    }
}

/// A share of the guest: `25%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Percent(u8);

impl Percent {
    /// So much of `whole`.
    pub(crate) fn of(self, whole: u64) -> u64 {
        let part = u128::from(whole) * u128::from(self.0) / 100;
        u64::try_from(part).unwrap_or(whole)
    }

    /// Of a hundred.
    pub(crate) fn number(self) -> u8 {
        self.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        let percent = number.filter(|&percent| percent <= 100).map(Self);
        percent.ok_or_else(|| format!("`{text}` is no share; write 0% to 100%"))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// Connections that carry pages, as many as the protocol allows.
pub(crate) fn lanes(text: &str) -> Result<NonZeroU16, String> {
    let lanes = text.parse().ok().filter(|lanes: &NonZeroU16| lanes.get() <= MAX_LANES);
    lanes.ok_or_else(|| format!("`{text}` is no number of connections; write 1 to {MAX_LANES}"))
}

/// Cores that may be used.
pub(crate) fn cores(text: &str) -> Result<NonZeroU16, String> {
    text.parse().map_err(|_| format!("`{text}` is no number of cores; write 1 or more, or leave it out"))
}

/// How long ago a moment was, given in seconds since 1970.
pub(crate) fn ago(then: u64) -> String {
    let now = receive::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let minutes = now.saturating_sub(then) / 60;
    match (minutes, minutes / 60) {
        (0, _) => "just now".to_owned(),
        (minutes, 0) => format!("{minutes} min ago"),
        (_, hours @ 1..48) => format!("{hours} h ago"),
        (_, hours) => format!("{} days ago", hours / 24),
    }
}

/// Where a peer listens: `host:7070`, `10.0.0.1:7070`, `[::1]:7070`.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    let port = port(text).filter(|&port| port > 0);
    port.map(|_| text.to_owned()).ok_or_else(|| {
        format!(
            "`{text}` is not HOST:PORT; write a host and a port of 1 to 65535, such as host:7070 or [2001:db8::1]:7070"
        )
    })
}

/// Where to listen: as [`host_port`], and port 0 lets the system choose.
pub(crate) fn listen_address(text: &str) -> Result<String, String> {
    port(text).map(|_| text.to_owned()).ok_or_else(|| {
        format!(
            "`{text}` is not ADDR:PORT; write an address of this host and a port of 0 to 65535, such as 0.0.0.0:7070 \
             or [::]:7070"
        )
    })
}

/// The port behind a host, which has colons only in brackets.
fn port(text: &str) -> Option<u16> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let sound = match bracketed {
        Some(host) => host.parse::<Ipv6Addr>().is_ok() || host.contains('%'),
        None => !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']),
    };
    // A number may not have a sign here.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|_| sound && digits)
}

/// A number as it is typed, `4` or `1.5`: exact, because a rate of a sum of floats is none that was typed.
struct Number {
    digits: u64,
    /// How many of them stand behind the point.
    behind: u32,
}

impl Number {
    /// The number that a text begins with, and its unit.
    fn before(text: &str) -> Option<(Self, &str)> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = text.split_at_checked(end)?;
        let (whole, part) = match number.split_once('.') {
            Some((_, "")) => return None,
            Some((whole, part)) => (whole, part),
            None => (number, ""),
        };
        let digits = if whole.is_empty() { None } else { format!("{whole}{part}").parse().ok() }?;
        Some((Self { digits, behind: u32::try_from(part.len()).ok()? }, unit))
    }

    /// So many times `factor / divisor`, rounded down.
    fn of(&self, factor: u64, divisor: u64) -> Option<u64> {
        let divisor = u128::from(divisor) * 10_u128.checked_pow(self.behind)?;
        u64::try_from(u128::from(self.digits) * u128::from(factor) / divisor).ok()
    }
}

/// Bytes for people: `1.5 GB`.
pub(crate) fn bytes(count: u64) -> String {
    let (unit, divisor) = match count {
        0..1_000 => return format!("{count} bytes"),
        1_000..1_000_000 => ("kB", 1_000),
        1_000_000..1_000_000_000 => ("MB", 1_000_000),
        _ => ("GB", 1_000_000_000),
    };
    let tenths = u128::from(count) * 10 / divisor;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A rate in bytes a second as [`Bandwidth`] reads it, in bits and not rounded: `1.6gbit`.
pub(crate) fn link(bytes: u64) -> String {
    let bits = u128::from(bytes) * 8;
    let (unit, divisor) = match bits {
        0..1_000_000 => ("kbit", 1_000),
        1_000_000..1_000_000_000 => ("mbit", 1_000_000),
        _ => ("gbit", 1_000_000_000),
    };
    let digits = format!("{}.{:09}", bits / divisor, bits % divisor * 1_000_000_000 / divisor);
    format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_unit_and_never_without() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(
            (duration("1.5s"), duration("0.2ms")),
            (Ok(Duration::from_millis(1500)), Ok(Duration::from_micros(200)))
        );
        let rate = |text: &str| text.parse::<Bandwidth>().map(|rate| rate.0.get());
        assert_eq!(rate("100mbit"), Ok(12_500_000));
        assert_eq!(rate("50MB/s"), Ok(50_000_000));
        assert_eq!(
            (rate("1.5gbit"), rate("0.256mbit"), rate("10.01GB")),
            (Ok(187_500_000), Ok(32_000), Ok(10_010_000_000))
        );
        assert_eq!((rate("1tbit"), rate("0.25TB/s")), (Ok(125_000_000_000), Ok(250_000_000_000)));
        assert_eq!("25%".parse::<Percent>().unwrap().of(1000), 250);
        for bad in ["", "30", "s", "-1s", "99999999999999999999s", "18446744073709551615h", "1.s", ".5s", "1.2.3s", "ä"]
        {
            assert!(duration(bad).unwrap_err().contains("300ms"), "{bad}");
        }
        for bad in ["100", "0mbit", "0.000mbit", "50mb", "x", "1,5gbit", "1.gbit", "18446744073709551615GB"] {
            assert!(rate(bad).unwrap_err().contains("100mbit"), "{bad}");
        }
        for bad in ["25", "101%", "-1%", "%"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_that_is_told_can_be_typed() {
        assert_eq!(
            (link(12_500_000), link(200_000_000), link(32_000)),
            ("100mbit".into(), "1.6gbit".into(), "256kbit".into())
        );
        for bytes in [1, 125, 1600, 16_000_001, 123_456_789_012] {
            assert_eq!(link(bytes).parse::<Bandwidth>().map(|rate| rate.0.get()), Ok(bytes));
        }
    }

    #[test]
    fn addresses_have_a_port_and_lanes_a_limit() {
        for good in ["host:7070", "10.0.0.1:1", "[::1]:65535", "[fe80::1%eth0]:7070"] {
            assert_eq!(host_port(good).unwrap(), good);
        }
        for bad in ["nocolon", "127.0.0.1:99999", ":7070", "host:", "host:+1", "::1:7070", "[x]:1", "http://host:1"] {
            assert!(host_port(bad).unwrap_err().contains("HOST:PORT"), "{bad}");
            assert!(listen_address(bad).unwrap_err().contains("ADDR:PORT"), "{bad}");
        }
        assert!(listen_address("127.0.0.1:0").is_ok() && host_port("127.0.0.1:0").is_err());
        assert_eq!((lanes("1").unwrap().get(), lanes("64").unwrap().get()), (1, 64));
        for bad in ["0", "65", "1000", "x"] {
            assert!(lanes(bad).unwrap_err().contains("1 to 64"), "{bad}");
        }
        assert_eq!(cores("3").unwrap().get(), 3);
        for bad in ["0", "-1", "70000", "all"] {
            assert!(cores(bad).unwrap_err().contains("1 or more"), "{bad}");
        }
    }

    #[test]
    fn sizes_have_a_unit_and_lengths_may_be_bytes() {
        assert_eq!((size("4GiB"), size("1234567B"), size("64KiB")), (Ok(4 << 30), Ok(1_234_567), Ok(65_536)));
        assert_eq!((size("1.5GiB"), size("2TiB")), (Ok(3 << 29), Ok(2 << 40)));
        for bad in ["", "0", "20", "1234567", "0B", "0.5B", "4GB", "1.5", "0.0001KiB", "GiB", "-1", "17179869184GiB"] {
            assert!(size(bad).unwrap_err().contains("4GiB"), "{bad}");
        }
        assert_eq!((length("1234567"), length("4GiB")), (Ok(1_234_567), Ok(4 << 30)));
        for bad in ["", "0", "-1", "1.5", "x"] {
            assert!(length(bad).unwrap_err().contains("4GiB"), "{bad}");
        }
    }

    #[test]
    fn bytes_are_told_with_one_digit_behind_the_point() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(1_550_000_000), "1.5 GB");
    }
}
