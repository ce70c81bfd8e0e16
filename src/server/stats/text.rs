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
            self.0.push(if nth == 0 { '{' } else { ',' });
            put_label(&mut self.0, label, value);
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        self.value(value, at);
    }

    /// One sample of a group, with some more labels, in the order of their names.
    pub(super) fn sample_of(&mut self, name: &str, own: &Labels, more: &[(&str, &str)], value: f64, at: Option<i64>) {
        self.0.push_str(name);
        self.0.push('{');
        let (mut from, mut separator) = (0, "");
        for (label, text) in more {
            // What comes before it by name, in one piece.
            let place = own.starts.iter().find(|(name, _)| name > label).map_or(own.text.len(), |(_, start)| *start);
            if place > from {
                self.0.push_str(separator);
                // Without the comma before the next one.
                self.0.push_str(own.text[from..place].trim_end_matches(','));
                separator = ",";
            }
            self.0.push_str(separator);
            put_label(&mut self.0, label, text);
            (from, separator) = (place, ",");
        }
        if from < own.text.len() {
            self.0.push_str(separator);
            self.0.push_str(&own.text[from..]);
        }
        self.0.push('}');
        self.value(value, at);
    }

    fn value(&mut self, value: f64, at: Option<i64>) {
        let _ = match whole(value) {
            Some(value) => write!(self.0, " {value}"),
            None => write!(self.0, " {value}"),
        };
        let _ = match at {
            Some(at) => writeln!(self.0, " {at}"),
            None => writeln!(self.0),
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

/// Labels that many samples have, written once.
#[derive(Debug)]
pub(super) struct Labels {
    text: String,
    /// Where each begins.
    starts: Vec<(&'static str, usize)>,
}

impl Labels {
    /// The labels must be in the order of their names.
    pub(super) fn new(labels: &[(&'static str, &str)]) -> Self {
        let (mut text, mut starts) = (String::new(), Vec::with_capacity(labels.len()));
        for (nth, (label, value)) in labels.iter().enumerate() {
            if nth > 0 {
                text.push(',');
            }
            starts.push((*label, text.len()));
            put_label(&mut text, label, value);
        }
        Self { text, starts }
    }
}

fn put_label(out: &mut String, label: &str, value: &str) {
    out.push_str(label);
    out.push_str("=\"");
    let mut rest = value;
    while let Some(place) = rest.find(['\\', '"', '\n']) {
        out.push_str(&rest[..place]);
        out.push_str(match rest.as_bytes()[place] {
            b'\\' => "\\\\",
            b'"' => "\\\"",
            _ => "\\n",
        });
        rest = &rest[place + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// A whole number as one: most are, and they are written in a fraction of the time.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "what gets lost makes it another number"
)]
fn whole(number: f64) -> Option<i64> {
    let whole = number as i64;
    (whole as f64 == number && whole != i64::MAX).then_some(whole)
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
        for odd in [-1.0, f64::INFINITY, 1e19] {
            page.sample("a_total", &[], odd, None);
        }
        let expected = "# HELP a_total Some.\n# TYPE a_total counter\na_total{x=\"a\\\"b\\\\c\\n\",y=\"\"} 1.5 7\na_total 3\n\
            a_total -1\na_total inf\na_total 10000000000000000000\n";
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn labels_that_were_written_before_are_mixed_with_others() {
        // A23.2
        let own = Labels::new(&[("b", "1,"), ("d", "x\""), ("f", "")]);
        let line = |more: &[(&str, &str)]| {
            let mut page = Page::default();
            page.sample_of("a", &own, more, 2.0, Some(7));
            page.into_text()
        };
        assert_eq!(line(&[]), "a{b=\"1,\",d=\"x\\\"\",f=\"\"} 2 7\n");
        assert_eq!(line(&[("a", "0")]), "a{a=\"0\",b=\"1,\",d=\"x\\\"\",f=\"\"} 2 7\n");
        assert_eq!(line(&[("c", "0"), ("e", "\n")]), "a{b=\"1,\",c=\"0\",d=\"x\\\"\",e=\"\\n\",f=\"\"} 2 7\n");
        assert_eq!(line(&[("e", "1"), ("ee", "2")]), "a{b=\"1,\",d=\"x\\\"\",e=\"1\",ee=\"2\",f=\"\"} 2 7\n");
        assert_eq!(line(&[("g", "0")]), "a{b=\"1,\",d=\"x\\\"\",f=\"\",g=\"0\"} 2 7\n");
    }
}
