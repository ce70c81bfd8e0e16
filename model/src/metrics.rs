//! Kubelet's metrics that rooms count while they work, with its names, and the page of all of them (A23.3).
//!
//! They are statics, as log lines are: whoever does the work counts it where it is done. Nothing reads them but the page.

mod kubelet;

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use kubelet::*;

/// Sorted by the values of the labels. A list, for it can be searched by borrowed ones: nothing is allocated for what was seen before.
type Series<T> = Mutex<Vec<(Vec<String>, T)>>;

/// It only grows.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    series: Series<u64>,
}

/// How long something took.
#[derive(Debug)]
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    series: Series<Observed>,
}

/// When something ends: told as the seconds that are left, negative after it, and infinite where there is none.
#[derive(Debug)]
pub struct Expiry {
    name: &'static str,
    help: &'static str,
    at: Mutex<Option<i64>>,
}

#[derive(Clone, Debug)]
struct Observed {
    /// By bucket, not yet added up.
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Counter {
    const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, labels, series: Mutex::new(Vec::new()) }
    }

    /// One more, with the values of the labels in their order.
    pub fn inc(&self, values: &[&str]) {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        *of(&mut series, values, || 0) += 1;
    }

    fn write(&self, page: &mut String, _now: i64) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        head(page, self.name, "counter", self.help);
        if self.labels.is_empty() && series.is_empty() {
            line(page, self.name, &[], "0");
        }
        for (values, count) in series.iter() {
            line(page, self.name, &pairs(self.labels, values), &count.to_string());
        }
    }
}

impl Histogram {
    const fn new(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        buckets: &'static [f64],
    ) -> Self {
        Self { name, help, labels, buckets, series: Mutex::new(Vec::new()) }
    }

    fn none(&self) -> Observed {
        Observed { counts: vec![0; self.buckets.len()], count: 0, sum: 0.0 }
    }

    /// It took so long, with the values of the labels in their order.
    pub fn observe(&self, values: &[&str], took: Duration) {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        let seconds = took.as_secs_f64();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let observed = of(&mut series, values, || self.none());
        if let Some(place) = self.buckets.iter().position(|most| seconds <= *most) {
            observed.counts[place] += 1;
        }
        observed.count += 1;
        observed.sum += seconds;
    }

    fn write(&self, page: &mut String, _now: i64) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        head(page, self.name, "histogram", self.help);
        // What has no labels is told of before anything was seen, as clients of Prometheus do.
        let none = [(Vec::new(), self.none())];
        let is_known = !self.labels.is_empty() || !series.is_empty();
        for (values, observed) in if is_known { series.as_slice() } else { &none } {
            let labels = pairs(self.labels, values);
            let mut sum = 0;
            let buckets = self.buckets.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            for (place, most) in buckets.enumerate() {
                sum += observed.counts.get(place).copied().unwrap_or_default();
                let count = if most == "+Inf" { observed.count } else { sum };
                let mut labels = labels.clone();
                labels.push(("le", &most));
                line(page, &format!("{}_bucket", self.name), &labels, &count.to_string());
            }
            line(page, &format!("{}_sum", self.name), &labels, &observed.sum.to_string());
            line(page, &format!("{}_count", self.name), &labels, &observed.count.to_string());
        }
    }
}

impl Expiry {
    const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, at: Mutex::new(None) }
    }

    /// It ends then, in seconds since 1970.
    pub fn set(&self, at: i64) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    fn write(&self, page: &mut String, now: i64) {
        let at = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        head(page, self.name, "gauge", self.help);
        line(page, self.name, &[], &at.map_or_else(|| "+Inf".to_owned(), |at| at.saturating_sub(now).to_string()));
    }
}

/// What is known of these values of the labels; `new` where nothing is.
fn of<'a, T>(series: &'a mut Vec<(Vec<String>, T)>, values: &[&str], new: impl FnOnce() -> T) -> &'a mut T {
    let known = |(known, _): &(Vec<String>, T)| known.iter().map(String::as_str).cmp(values.iter().copied());
    let place = series.binary_search_by(known).unwrap_or_else(|place| {
        series.insert(place, (values.iter().map(|value| (*value).to_owned()).collect(), new()));
        place
    });
    &mut series[place].1
}

fn pairs<'a>(labels: &[&'a str], values: &'a [String]) -> Vec<(&'a str, &'a str)> {
    labels.iter().copied().zip(values.iter().map(String::as_str)).collect()
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} [ALPHA] {help}\n# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &[(&str, &str)], value: &str) {
    page.push_str(name);
    for (nth, (label, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(page, "{}{label}=\"{value}\"", if nth == 0 { '{' } else { ',' });
    }
    let _ = writeln!(page, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_prometheus_reads() {
        // A23.3
        static COUNT: Counter = Counter::new("a_total", "Some.", &["x"]);
        static TOOK: Histogram = Histogram::new("b_seconds", "Long.", &[], &[0.5, 1.0]);
        COUNT.inc(&["a\"b"]);
        COUNT.inc(&["a\"b"]);
        for milliseconds in [250, 750, 5000] {
            TOOK.observe(&[], Duration::from_millis(milliseconds));
        }
        let mut page = String::new();
        COUNT.write(&mut page, 0);
        TOOK.write(&mut page, 0);
        let expected = "# HELP a_total [ALPHA] Some.\n# TYPE a_total counter\na_total{x=\"a\\\"b\"} 2\n\
            # HELP b_seconds [ALPHA] Long.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"0.5\"} 1\n\
            b_seconds_bucket{le=\"1\"} 2\nb_seconds_bucket{le=\"+Inf\"} 3\nb_seconds_sum 6\nb_seconds_count 3\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn what_ends_is_told_by_the_time_that_is_left() {
        // A23.3
        static ENDS: Expiry = Expiry::new("ttl_seconds", "Left.");
        let told = |now| {
            let mut page = String::new();
            ENDS.write(&mut page, now);
            page.lines().last().map(str::to_owned)
        };
        assert_eq!(told(5).as_deref(), Some("ttl_seconds +Inf"));
        ENDS.set(100);
        assert_eq!((told(40).as_deref(), told(130).as_deref()), (Some("ttl_seconds 60"), Some("ttl_seconds -30")));
    }

    #[test]
    fn names_are_told_once() {
        let page = text(0);
        let mut names: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
