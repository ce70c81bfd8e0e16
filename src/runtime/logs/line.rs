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
    pub(super) time: Cow<'a, str>,
    /// What the container wrote, with its newline unless it is only part of a line.
    pub(super) text: Cow<'a, [u8]>,
}

/// Where the first line in `bytes` ends, newline included; `None` where it has no end yet.
pub(super) fn end_of_line(bytes: &[u8]) -> Option<usize> {
    // The C library's vectorised search, without a dependency.
    let mut rest = bytes;
    let length = rest.skip_until(b'\n').expect("reading from memory cannot fail");
    bytes[..length].ends_with(b"\n").then_some(length)
}

/// Reads one line, with or without its newline. `None`: it is in no format that we know, and is left out, as kubelet does.
pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    if line.first() == Some(&b'{') { parse_json(line) } else { parse_cri(line) }
}

fn parse_cri(line: &[u8]) -> Option<Line<'_>> {
    let (time, rest) = word(line)?;
    let time = std::str::from_utf8(time).ok()?;
    // 20 characters at least: 2006-01-02T15:04:05Z.
    if time.len() < 20 || time.as_bytes()[10] != b'T' {
        return None;
    }
    let (stream, rest) = word(rest)?;
    if !matches!(stream, b"stdout" | b"stderr") {
        return None;
    }
    let (tags, text) = word(rest)?;
    let partial = matches!(tags, b"P") || tags.starts_with(b"P:");
    let text = if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    Some(Line { time: Cow::Borrowed(time), text: Cow::Borrowed(text) })
}

fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().take(64).position(|byte| *byte == b' ')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[derive(Deserialize)]
struct JsonLine {
    #[serde(default)]
    log: String,
    time: String,
}

fn parse_json(line: &[u8]) -> Option<Line<'_>> {
    let JsonLine { log, time } = serde_json::from_slice(line).ok()?;
    Some(Line { time: Cow::Owned(time), text: Cow::Owned(log.into_bytes()) })
}

impl Line<'_> {
    /// Whether it was written at `since` or later; what has no readable time was not.
    pub(super) fn is_since(&self, since: Timestamp) -> bool {
        self.time.parse::<Timestamp>().is_ok_and(|time| time >= since)
    }

    /// Writes the time with nine digits, so that columns align (A20.3).
    pub(super) fn write_time(&self, out: &mut Vec<u8>) {
        let time = self.time.as_bytes();
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
            ("\n", None),
            ("{broken", None),
        ] {
            assert_eq!(text(line).as_deref(), expected, "{line:?}");
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
            let line = Line { time: Cow::Borrowed(given), text: Cow::Borrowed(b"") };
            let mut out = Vec::new();
            line.write_time(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), shown);
        }
    }
}
