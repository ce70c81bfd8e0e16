//! The text format of Prometheus.

use std::fmt::Write as _;

/// A page of metrics.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Begins a metric; its samples follow.
    pub(super) fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample, with the time it was taken at in milliseconds.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<i64>) {
        self.0.push_str(name);
        for (nth, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if nth == 0 { '{' } else { ',' });
            for sign in value.chars() {
                match sign {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = match at {
            Some(at) => writeln!(self.0, " {value} {at}"),
            None => writeln!(self.0, " {value}"),
        };
    }

    /// Metrics that are text already.
    pub(super) fn append(&mut self, text: &str) {
        self.0.push_str(text);
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// A counter or size as a sample's value.
#[expect(clippy::cast_precision_loss, reason = "that is what the format has; from 2^53 on the last digits say nothing")]
pub(super) fn value(number: u64) -> f64 {
    number as f64
}

/// Nanoseconds as seconds.
pub(super) fn seconds(nanoseconds: u64) -> f64 {
    value(nanoseconds) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.metric("a_total", "counter", "Some.");
        page.sample("a_total", &[("x", "a\"b\\c\n"), ("y", "")], 1.5, Some(7));
        page.sample("a_total", &[], value(3), None);
        let expected =
            "# HELP a_total Some.\n# TYPE a_total counter\na_total{x=\"a\\\"b\\\\c\\n\",y=\"\"} 1.5 7\na_total 3\n";
        assert_eq!(page.into_text(), expected);
    }
}
