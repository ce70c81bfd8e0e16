//! Figures: times that were taken many times, and a table of what was measured with its bars.

use std::fmt;
use std::time::Duration;

use stoker::clock::Clock;

/// Least, median and ninth decile of some times. The least is what other work on the machine disturbs least.
pub(crate) struct Spread {
    pub(crate) least: Duration,
    pub(crate) median: Duration,
    pub(crate) p90: Duration,
}

impl Spread {
    /// Of at least one.
    pub(crate) fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort_unstable();
        Self { least: times[0], median: times[times.len() / 2], p90: times[times.len() * 9 / 10] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, median, p90] = [self.least, self.median, self.p90].map(milliseconds);
        write!(f, "least {least:.1} ms, median {median:.1} ms, p90 {p90:.1} ms")
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let before = Clock.now().monotonic;
    let result = work.await;
    (result, Clock.now().monotonic - before)
}

/// Prints the head of the table.
pub(crate) fn head() {
    println!("{:<34} | {:>9} | {:>9} | {:<40} |        | beside it", "what", "figure", "bar", "unit");
}

/// Prints a row: what was measured, its bar, and what else was seen. Its name where the bar is missed, for those who fail then.
pub(crate) fn row(what: &str, value: f64, bar: f64, unit: &str, beside: &str) -> Option<String> {
    let verdict = if value <= bar { "met" } else { "MISSED" };
    println!("{what:<34} | {value:>9.3} | {bar:>9.3} | {unit:<40} | {verdict:<6} | {beside}");
    (value > bar).then(|| what.to_owned())
}
