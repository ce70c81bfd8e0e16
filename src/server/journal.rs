//! `/logs?query=…`: what units of this machine have logged, by journalctl, or a log file below /var/log (A18.6).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::process::Command;
use tokio_util::io::ReaderStream;

use super::files;
use super::query::Query;
use super::reply::{self, Reply};

/// What kubelet allows.
const MOST_UNITS: usize = 4;
const LONGEST_UNIT: usize = 256;
const MOST_LINES: i64 = 100_000;
/// A question to the journal takes no longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, PartialEq, Eq, Default)]
struct Question {
    units: Vec<String>,
    file: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    lines: Option<i64>,
    boot: Option<i64>,
    pattern: Option<String>,
}

impl Question {
    fn has_options(&self) -> bool {
        let none = Self { units: self.units.clone(), file: self.file.clone(), ..Self::default() };
        *self != none
    }

    /// Reads a query; `Err` says what is wrong with it.
    fn parse(query: &Query) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut files = Vec::new();
        for what in query.values("query").chain(query.values("unit")) {
            if what.contains(['/', '\\']) {
                files.push(what.to_owned());
            } else if !what.trim().is_empty() {
                asked.units.push(what.to_owned());
            }
        }
        if asked.units.is_empty() && files.is_empty() {
            return Err("query: cannot be empty".to_owned());
        }
        if !files.is_empty() && !asked.units.is_empty() {
            return Err("query: cannot specify a file and service".to_owned());
        }
        if files.len() > 1 {
            return Err("query: cannot specify more than one file".to_owned());
        }
        if asked.units.len() > MOST_UNITS {
            return Err(format!("query: must have at most {MOST_UNITS} items"));
        }
        for unit in &asked.units {
            let good = |sign: char| sign.is_ascii_alphanumeric() || "-_.:@".contains(sign);
            if unit.len() > LONGEST_UNIT || !unit.chars().all(good) || unit.starts_with('-') {
                return Err(format!("query: {unit:?}: input contains unsupported characters"));
            }
        }
        let time = |name: &str| -> Result<Option<Timestamp>, String> {
            let value = query.first(name).filter(|value| !value.is_empty());
            value.map(|text| text.parse().map_err(|_| format!("{name}: {text:?}: invalid time format"))).transpose()
        };
        let number = |name: &str| -> Result<Option<i64>, String> {
            let value = query.first(name).filter(|value| !value.is_empty());
            value.map(|text| text.parse().map_err(|_| format!("{name}: {text:?}: is no number"))).transpose()
        };
        (asked.since, asked.until) = (time("sinceTime")?, time("untilTime")?);
        (asked.lines, asked.boot) = (number("tailLines")?, number("boot")?);
        asked.pattern = query.first("pattern").filter(|pattern| !pattern.is_empty()).map(str::to_owned);
        if asked.since.zip(asked.until).is_some_and(|(since, until)| since > until) {
            return Err("untilTime: must be after `sinceTime`".to_owned());
        }
        if asked.lines.is_some_and(|lines| !(0..=MOST_LINES).contains(&lines)) {
            return Err(format!("tailLines: must be between 0 and {MOST_LINES}, inclusive"));
        }
        if asked.boot.is_some_and(|boot| boot > 0) {
            return Err("boot: must be less than 1".to_owned());
        }
        asked.file = files.pop();
        if asked.file.is_some() && asked.has_options() {
            return Err("query: cannot specify file with options".to_owned());
        }
        Ok(asked)
    }

    fn arguments(&self) -> Vec<String> {
        let time = |time: Timestamp| time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        let mut all = vec!["--utc".to_owned(), "--no-pager".to_owned(), "--output=short-precise".to_owned()];
        all.extend(self.since.map(|since| format!("--since={}", time(since))));
        all.extend(self.until.map(|until| format!("--until={}", time(until))));
        all.extend(self.lines.map(|lines| format!("--lines={lines}")));
        all.extend(self.units.iter().map(|unit| format!("--unit={unit}")));
        all.extend(self.pattern.iter().map(|pattern| format!("--grep={pattern}")));
        all.extend(self.boot.map(|boot| format!("--boot={boot}")));
        all
    }
}

/// Answers a question about `directory`, which is /var/log.
pub(super) async fn answer(directory: &Path, query: &Query) -> Reply {
    let asked = match Question::parse(query) {
        Ok(asked) => asked,
        Err(reason) => return reply::text(StatusCode::BAD_REQUEST, reason),
    };
    if let Some(file) = &asked.file {
        return files::answer(directory, file).await;
    }
    // A service that does not log to the journal may log to a file of its name.
    if let [unit] = asked.units.as_slice()
        && !is_in_journal(unit).await
    {
        if asked.has_options() {
            let text = format!(
                "\noptions present and query resolved to log files for [{unit}]\ntry without specifying options\n"
            );
            return reply::text(StatusCode::OK, text);
        }
        for name in [unit.clone(), format!("{unit}.log"), format!("{unit}/{unit}.log")] {
            let found = files::answer_file(directory, &name).await;
            if let Some(found) = found {
                return found;
            }
        }
        return reply::text(StatusCode::OK, format!("\nlogs not found for: {unit:?}\n"));
    }
    let mut command = Command::new("journalctl");
    command
        .args(asked.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match command.spawn() {
        Ok(mut child) => match child.stdout.take() {
            Some(output) => reply::file(until_done(child, ReaderStream::with_capacity(output, 64 << 10))),
            None => reply::text(StatusCode::INTERNAL_SERVER_ERROR, "journal output not available"),
        },
        Err(error) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, format!("journal output not available: {error}")),
    }
}

/// The output, until it ends or the patience does; the program ends with it.
fn until_done<S>(child: tokio::process::Child, output: S) -> impl futures::Stream<Item = S::Item> + Send
where
    S: futures::Stream + Send + Unpin,
    S::Item: Send,
{
    use futures::StreamExt;
    let deadline = Box::pin(tokio::time::sleep(PATIENCE));
    output.take_until(deadline).map(move |piece| {
        // It lives, and is killed, with the stream that owns it.
        let _ = &child;
        piece
    })
}

async fn is_in_journal(unit: &str) -> bool {
    let output = Command::new("journalctl").args(["--field", "_SYSTEMD_UNIT"]).stdin(Stdio::null()).output().await;
    let Ok(output) = output else { return false };
    let full = format!("{unit}.service");
    String::from_utf8_lossy(&output.stdout).lines().any(|line| line == unit || line == full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_checked_before_anything_runs() {
        // A18.6
        let parse = |text: &str| Question::parse(&Query::parse(text).expect("a query"));
        let asked = parse(
            "query=kubelet&query=containerd.service&sinceTime=2026-01-02T03:04:05Z&untilTime=2026-01-02T04:00:00Z&tailLines=5&pattern=err&boot=-1",
        );
        let expected = [
            "--utc",
            "--no-pager",
            "--output=short-precise",
            "--since=2026-01-02 03:04:05 UTC",
            "--until=2026-01-02 04:00:00 UTC",
            "--lines=5",
            "--unit=kubelet",
            "--unit=containerd.service",
            "--grep=err",
            "--boot=-1",
        ];
        assert_eq!(asked.expect("good").arguments(), expected);
        assert_eq!(parse("query=/pods/a.log").expect("a file").file.as_deref(), Some("/pods/a.log"));
        for (bad, complaint) in [
            ("query=", "empty"),
            ("query=%20%20", "empty"),
            ("query=a;b", "unsupported characters"),
            ("query=--file", "unsupported characters"),
            ("query=a%0Ab", "unsupported characters"),
            ("query=a&query=b&query=c&query=d&query=e", "at most 4"),
            ("query=a&query=/b", "a file and service"),
            ("query=/a&query=/b", "more than one file"),
            ("query=/a&tailLines=1", "file with options"),
            ("query=a&sinceTime=yesterday", "sinceTime"),
            ("query=a&tailLines=-1", "tailLines"),
            ("query=a&tailLines=100001", "tailLines"),
            ("query=a&tailLines=x", "tailLines"),
            ("query=a&boot=1", "boot"),
            ("query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", "untilTime"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(complaint), "{bad}: {error}");
        }
    }
}
