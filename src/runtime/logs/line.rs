//! One line of a container's log file: CRI's format, or Docker's JSON (A20.2).

use std::borrow::Cow;
use std::io::BufRead;

use jiff::Timestamp;
use serde::Deserialize;

/// Digits of a second's fraction in what users see.
const FRACTION: usize = 9;

/// What one line of the file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// As written: RFC 3339 with up to nine digits.
    pub(super) time: Cow<'a, [u8]>,
    /// What the container wrote, with its newline unless it is only part of a line.
    pub(super) text: Cow<'a, [u8]>,
}

/// Where the first line in `bytes` ends, newline included; `None` where it has no end yet.
pub(super) fn end_of_line(bytes: &[u8]) -> Option<usize> {
    // The C library's vectorised search, without a dependency.
    let mut rest = bytes;
    let length = rest.skip_until(b'\n').expect("reading from memory cannot fail");
    (bytes.get(length.checked_sub(1)?) == Some(&b'\n')).then_some(length)
}

/// Reads one line, with or without its newline. `None`: it is in no format that we know, and is left out, as kubelet does.
pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    if line.first() == Some(&b'{') { parse_json(line) } else { parse_cri(line) }
}

fn parse_cri(line: &[u8]) -> Option<Line<'_>> {
    let (time, rest) = line.split_at_checked(time_length(line)?)?;
    let rest = rest.strip_prefix(b" stdout ").or_else(|| rest.strip_prefix(b" stderr "))?;
    let time = Cow::Borrowed(time);
    if let Some(text) = rest.strip_prefix(b"F ") {
        return Some(Line { time, text: Cow::Borrowed(text) });
    }
    let (tags, text) = rest.split_at(rest.iter().position(|byte| *byte == b' ')?);
    let text = &text[1..];
    let partial = tags == b"P" || tags.starts_with(b"P:");
    let text = if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    Some(Line { time, text: Cow::Borrowed(text) })
}

/// How long the time at the beginning is. Nearly all have nine digits and end with `Z` or `+00:00`: those are not searched for their end,
/// which was a third of the work for a line.
fn time_length(line: &[u8]) -> Option<usize> {
    let usual = match (line.get(29), line.get(30), line.get(35)) {
        (Some(b'Z'), Some(b' '), _) => Some(30),
        (Some(b'+' | b'-'), _, Some(b' ')) => Some(35),
        _ => None,
    };
    let length = match usual {
        Some(length) => length,
        None => line.iter().take(64).position(|byte| *byte == b' ')?,
    };
    // 20 characters at least: 2006-01-02T15:04:05Z.
    (length >= 20 && line[4] == b'-' && line[10] == b'T' && line[16] == b':').then_some(length)
}

#[derive(Deserialize)]
struct JsonLine {
    #[serde(default)]
    log: String,
    time: String,
}

fn parse_json(line: &[u8]) -> Option<Line<'_>> {
    let JsonLine { log, time } = serde_json::from_slice(line).ok()?;
    Some(Line { time: Cow::Owned(time.into_bytes()), text: Cow::Owned(log.into_bytes()) })
}

/// A moment that lines are compared with.
#[derive(Debug)]
pub(super) struct Since {
    time: Timestamp,
    /// With nine digits and `Z`, as most lines have it: such texts are in the order of their times, and need no parsing.
    text: String,
}

impl Since {
    pub(super) fn new(time: Timestamp) -> Self {
        Self { time, text: format!("{time:.9}") }
    }
}

impl Line<'_> {
    /// Whether it was written at that time or later; what has no readable time was not.
    pub(super) fn is_since(&self, since: &Since) -> bool {
        if self.time.len() == since.text.len() && self.time.ends_with(b"Z") {
            return *self.time >= *since.text.as_bytes();
        }
        let time = std::str::from_utf8(&self.time).ok().and_then(|time| time.parse::<Timestamp>().ok());
        time.is_some_and(|time| time >= since.time)
    }

    /// Writes the time with nine digits, so that columns align (A20.3).
    pub(super) fn write_time(&self, out: &mut Vec<u8>) {
        let time = &*self.time;
        // After the seconds, at the 19th character: perhaps a fraction, then the zone.
        let (seconds, rest) = time.split_at(time.len().min(19));
        let digits = rest.strip_prefix(b".").unwrap_or_default();
        let digits = &digits[..digits.iter().take_while(|digit| digit.is_ascii_digit()).count()];
        let zone = if rest.starts_with(b".") { &rest[1 + digits.len()..] } else { rest };
        out.extend_from_slice(seconds);
        out.push(b'.');
        out.extend_from_slice(&digits[..digits.len().min(FRACTION)]);
        out.resize(out.len() + FRACTION.saturating_sub(digits.len()), b'0');
        out.extend_from_slice(zone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> Option<String> {
        parse(line.as_bytes()).map(|line| String::from_utf8(line.text.into_owned()).unwrap())
    }

    #[test]
    fn both_formats_are_read() {
        // A20.2
        for (line, expected) in [
            ("2026-01-02T03:04:05.6Z stdout F a b\n", Some("a b\n")),
            ("2026-01-02T03:04:05.6Z stderr F \n", Some("\n")),
            ("2026-01-02T03:04:05.6Z stdout P part\n", Some("part")),
            ("2026-01-02T03:04:05.6Z stdout P:x part\n", Some("part")),
            ("2026-01-02T03:04:05.6Z stdout F:later whole\n", Some("whole\n")),
            ("2026-01-02T03:04:05Z stdout F no end", Some("no end")),
            (r#"{"log":"json\n","stream":"stdout","time":"2026-01-02T03:04:05.6Z"}"#, Some("json\n")),
            ("2026-01-02T03:04:05.6Z stdin F a\n", None),
            ("yesterday stdout F a\n", None),
            ("2026-01-02T03:04:05.123456789Z stdout F nine\n", Some("nine\n")),
            ("2026-01-02T03:04:05.123456789+02:00 stderr F nine\n", Some("nine\n")),
            ("2026-01-02T03:04:05.1Z stdout F a b c d\n", Some("a b c d\n")),
            ("2026-01-02T03:04:05.123456789Z stdout\n", None),
            ("\n", None),
            ("{broken", None),
        ] {
            assert_eq!(text(line).as_deref(), expected, "{line:?}");
        }
    }

    #[test]
    fn a_time_ends_where_it_ends_whatever_its_digits() {
        // A20.2
        for zone in ["Z", "+02:00", "-11:30"] {
            for stream in ["stdout", "stderr"] {
                for digits in 0..=9 {
                    let fraction = if digits == 0 { String::new() } else { format!(".{}", &"123456789"[..digits]) };
                    let line = format!("2026-01-02T03:04:05{fraction}{zone} {stream} F text\n");
                    assert_eq!(text(&line).as_deref(), Some("text\n"), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn times_have_nine_digits() {
        // A20.3
        for (given, shown) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000000Z"),
            ("2026-01-02T03:04:05.12Z", "2026-01-02T03:04:05.120000000Z"),
            ("2026-01-02T03:04:05.123456789+02:00", "2026-01-02T03:04:05.123456789+02:00"),
            ("2026-01-02T03:04:05+02:00", "2026-01-02T03:04:05.000000000+02:00"),
        ] {
            let line = Line { time: Cow::Borrowed(given.as_bytes()), text: Cow::Borrowed(b"") };
            let mut out = Vec::new();
            line.write_time(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), shown);
        }
    }

    #[test]
    fn moments_are_compared_whatever_the_zone() {
        // A20.3
        let since = Since::new("2026-01-02T03:04:05.5Z".parse().unwrap());
        for (time, is) in [
            ("2026-01-02T03:04:05.500000000Z", true),
            ("2026-01-02T03:04:05.499999999Z", false),
            ("2026-01-02T05:04:05.500000000+02:00", true),
            ("2026-01-02T05:04:05.499999999+02:00", false),
            ("2026-01-02T03:04:05.5Z", true),
            ("2026-01-02T03:04:05Z", false),
            ("2026-01-02T03:04:xx.5Z", false),
        ] {
            let line = Line { time: Cow::Borrowed(time.as_bytes()), text: Cow::Borrowed(b"") };
            assert_eq!(line.is_since(&since), is, "{time}");
        }
    }
}
