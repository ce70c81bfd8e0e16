//! Durations as Go writes them: `1m30s`, `100ms`, `0s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct GoDuration(pub Duration);

/// Why a text is no duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a duration: write numbers with units, such as 10s, 1m30s or 100ms")]
pub struct DurationError(String);

impl GoDuration {
    /// Whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Whole milliseconds.
    pub const fn milliseconds(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let error = || DurationError(text.to_owned());
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
            let number: f64 = rest[..end].parse().map_err(|_| error())?;
            rest = &rest[end..];
            let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let seconds = match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(error()),
            };
            rest = &rest[end..];
            total += Duration::try_from_secs_f64(number * seconds).map_err(|_| error())?;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for GoDuration {
    /// As Go's `Duration.String`: `1h0m0s`, `1m30s`, `1.5s`, `100ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let fraction = self.0.subsec_nanos();
        if seconds == 0 && fraction > 0 {
            let (unit, size) = match fraction {
                1_000_000.. => ("ms", 1e6),
                1000.. => ("µs", 1e3),
                _ => ("ns", 1.0),
            };
            return write!(f, "{}{unit}", f64::from(fraction) / size);
        }
        if seconds >= 3600 {
            write!(f, "{}h", seconds / 3600)?;
        }
        if seconds >= 60 {
            write!(f, "{}m", seconds / 60 % 60)?;
        }
        write!(f, "{}", seconds % 60)?;
        if fraction > 0 {
            write!(f, ".{}", format!("{fraction:09}").trim_end_matches('0'))?;
        }
        f.write_str("s")
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read_and_written() {
        for (text, milliseconds, written) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("10s", 10_000, "10s"),
            ("1m30s", 90_000, "1m30s"),
            ("4h", 14_400_000, "4h0m0s"),
            ("1.5h", 5_400_000, "1h30m0s"),
            ("100ms", 100, "100ms"),
            ("1s500ms", 1500, "1.5s"),
        ] {
            let read: GoDuration = text.parse().expect("a duration");
            assert_eq!(read.0.as_millis(), milliseconds, "{text}");
            assert_eq!(read.to_string(), written, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "5", "s", "1x", "-1s", "1s2", "1..2s", "ms"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
    }
}
