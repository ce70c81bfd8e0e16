//! How many attempts went how, and how long they took, as Prometheus reads it (A5.13).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use stoker_model::pod::{PodRef, PodUid};

use super::action::Outcome;
use super::board::Kind;

/// Upper bounds of the histogram's buckets, in seconds: the usual ones.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What one probe has done so far, over all instances of its container.
#[derive(Debug, Default)]
struct Count {
    successful: u64,
    failed: u64,
    unknown: u64,
    /// Attempts that took at most so long, by bucket; those that failed are not timed, as upstream does it.
    within: [u64; BUCKETS.len()],
    timed: u64,
    seconds: f64,
}

/// The probes of one pod, by container and kind.
type Probes = BTreeMap<(String, Kind), Count>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pods: BTreeMap<PodUid, (PodRef, Probes)>,
}

impl Counts {
    pub(super) fn add(&mut self, pod: &PodRef, container: &str, kind: Kind, outcome: &Outcome, took: Duration) {
        let (_, probes) = self.pods.entry(pod.uid.clone()).or_insert_with(|| (pod.clone(), BTreeMap::new()));
        let count = probes.entry((container.to_owned(), kind)).or_default();
        match outcome {
            Outcome::Success | Outcome::Warning(_) => count.successful += 1,
            Outcome::Failure(_) => {
                count.failed += 1;
                return;
            }
            Outcome::Unknown(_) => count.unknown += 1,
        }
        let seconds = took.as_secs_f64();
        count.timed += 1;
        count.seconds += seconds;
        BUCKETS.iter().zip(&mut count.within).filter(|(bound, _)| seconds <= **bound).for_each(|(_, n)| *n += 1);
    }

    pub(super) fn forget(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
    }

    /// In the text form of Prometheus.
    pub(super) fn text(&self) -> String {
        let mut totals = String::new();
        let mut times = String::new();
        for (uid, (pod, probes)) in &self.pods {
            for ((container, kind), count) in probes {
                let (namespace, name, kind) = (&pod.namespace, &pod.name, kind.text());
                let labels = format!("container=\"{container}\",namespace=\"{namespace}\",pod=\"{name}\"");
                let results = [("successful", count.successful), ("failed", count.failed), ("unknown", count.unknown)];
                for (result, number) in results.into_iter().filter(|(_, number)| *number > 0) {
                    let more = format!("pod_uid=\"{uid}\",probe_type=\"{kind}\",result=\"{result}\"");
                    // Writing into a String cannot fail.
                    let _ = writeln!(totals, "prober_probe_total{{{labels},{more}}} {number}");
                }
                let labels = format!("{labels},probe_type=\"{kind}\"");
                let bounds = BUCKETS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
                let within = count.within.iter().chain([&count.timed]);
                for (bound, number) in bounds.zip(within).filter(|_| count.timed > 0) {
                    let _ = writeln!(times, "prober_probe_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {number}");
                }
                if count.timed > 0 {
                    let _ = writeln!(times, "prober_probe_duration_seconds_sum{{{labels}}} {}", count.seconds);
                    let _ = writeln!(times, "prober_probe_duration_seconds_count{{{labels}}} {}", count.timed);
                }
            }
        }
        let head = |name: &str, help: &str, kind: &str| format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let mut text = String::new();
        if !times.is_empty() {
            let help = "[ALPHA] Duration in seconds for a probe response.";
            text += &head("prober_probe_duration_seconds", help, "histogram");
            text += &times;
        }
        if !totals.is_empty() {
            let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
            text += &head("prober_probe_total", help, "counter");
            text += &totals;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_and_timed() {
        // A5.13
        let mut counts = Counts::default();
        assert_eq!(counts.text(), "");
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let mut add = |kind, outcome, ms| counts.add(&pod, "c", kind, &outcome, Duration::from_millis(ms));
        add(Kind::Liveness, Outcome::Success, 20);
        add(Kind::Liveness, Outcome::Warning(String::new()), 300);
        add(Kind::Liveness, Outcome::Failure(String::new()), 1);
        add(Kind::Readiness, Outcome::Unknown(String::new()), 4);
        let text = counts.text();
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        let of = |kind: &str, result: &str| {
            format!(
                "prober_probe_total{{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"{kind}\",result=\"{result}\"}}"
            )
        };
        has(&format!("{} 2", of("Liveness", "successful")));
        has(&format!("{} 1", of("Liveness", "failed")));
        has(&format!("{} 1", of("Readiness", "unknown")));
        let labels = "container=\"c\",namespace=\"n\",pod=\"p\",probe_type=\"Liveness\"";
        has(&format!("prober_probe_duration_seconds_bucket{{{labels},le=\"0.025\"}} 1"));
        has(&format!("prober_probe_duration_seconds_bucket{{{labels},le=\"0.5\"}} 2"));
        has(&format!("prober_probe_duration_seconds_count{{{labels}}} 2"));
        assert!(text.contains("# TYPE prober_probe_total counter"));
        counts.forget(&PodUid::new("u"));
        assert_eq!(counts.text(), "");
    }
}
