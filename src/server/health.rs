//! `/healthz` and its checks, in the words of Kubernetes' health checks (A18.1).

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use http::StatusCode;

use super::reply::{self, Reply};

/// The checks, in the order of the page.
const NAMES: [&str; 3] = ["ping", "log", "syncloop"];

/// What came of each check so far.
#[derive(Debug, Default)]
pub(super) struct Results(Mutex<[Result; NAMES.len()]>);

#[derive(Debug, Default, Clone, Copy)]
struct Result {
    /// How often it succeeded and failed.
    counts: (u64, u64),
    last: bool,
}

impl Results {
    fn note(&self, place: usize, good: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = &mut all[place];
        result.last = good;
        *(if good { &mut result.counts.0 } else { &mut result.counts.1 }) += 1;
    }

    /// `/metrics/slis`: nothing of a check that was never made (A18.4).
    pub(super) fn metrics(&self) -> String {
        let all = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || NAMES.iter().zip(all).filter(|(_, result)| result.counts != (0, 0));
        let mut page =
            "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
                        # TYPE kubernetes_healthcheck gauge\n"
                .to_owned();
        for (name, result) in made() {
            let value = u8::from(result.last);
            let _ = writeln!(page, "kubernetes_healthcheck{{name=\"{name}\",type=\"healthz\"}} {value}");
        }
        page += "# HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
                 # TYPE kubernetes_healthchecks_total counter\n";
        for (name, result) in made() {
            for (status, count) in [("error", result.counts.1), ("success", result.counts.0)] {
                if count > 0 {
                    let labels = format!("name=\"{name}\",status=\"{status}\",type=\"healthz\"");
                    let _ = writeln!(page, "kubernetes_healthchecks_total{{{labels}}} {count}");
                }
            }
        }
        page
    }
}

/// Which checks a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// All of them.
    All,
    /// That somebody answers.
    Ping,
    /// That logs are written, which cannot fail here without the answer failing too.
    Log,
    /// That the pods' supervisor comes round.
    SyncLoop,
}

impl Check {
    /// From the last part of the path.
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ping" => Self::Ping,
            "log" => Self::Log,
            "syncloop" => Self::SyncLoop,
            _ => return None,
        })
    }

    /// The answer; `verbose` says what was checked also when all is well.
    pub(super) fn answer(self, alive: bool, verbose: bool, excluded: &[&str], results: &Results) -> Reply {
        if self != Self::All {
            return if self == Self::SyncLoop && !alive {
                reply::text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal server error: sync Loop took longer than expected",
                )
            } else {
                reply::text(StatusCode::OK, "ok")
            };
        }
        let mut page = String::new();
        let mut failed = Vec::new();
        for (place, (name, good)) in NAMES.into_iter().zip([true, true, alive]).enumerate() {
            if excluded.contains(&name) {
                page.push_str(&format!("[+]{name} excluded: ok\n"));
                continue;
            }
            results.note(place, good);
            if good {
                page.push_str(&format!("[+]{name} ok\n"));
            } else {
                page.push_str(&format!("[-]{name} failed: reason withheld\n"));
                failed.push(name);
            }
        }
        if !failed.is_empty() {
            return reply::text(StatusCode::INTERNAL_SERVER_ERROR, page + "healthz check failed\n");
        }
        reply::text(StatusCode::OK, if verbose { page + "healthz check passed\n" } else { "ok".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_loop_that_hangs_makes_the_node_unhealthy() {
        // A18.1
        let results = Results::default();
        assert!(!results.metrics().contains('{'), "nothing was checked");
        let answer = async |check: Check, alive, verbose, excluded: &[&str]| {
            let reply = check.answer(alive, verbose, excluded, &results);
            let status = reply.status().as_u16();
            let body = reply.into_body().collect().await.expect("a body").to_bytes();
            (status, String::from_utf8(body.to_vec()).expect("text"))
        };
        assert_eq!(answer(Check::All, true, false, &[]).await, (200, "ok".into()));
        let all = "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n";
        assert_eq!(answer(Check::All, true, true, &[]).await, (200, all.into()));
        let bad = "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";
        assert_eq!(answer(Check::All, false, false, &[]).await, (500, bad.into()));
        assert_eq!(answer(Check::All, false, false, &["syncloop"]).await, (200, "ok".into()));
        let of = |name: &str| Check::of(name).expect("a check");
        assert_eq!(answer(of("syncloop"), true, false, &[]).await, (200, "ok".into()));
        assert_eq!(answer(of("syncloop"), false, false, &[]).await.0, 500);
        assert_eq!(answer(of("ping"), false, false, &[]).await, (200, "ok".into()));
        assert_eq!(answer(of("log"), false, false, &[]).await, (200, "ok".into()));
        assert_eq!(Check::of("other"), None);
        // A18.4, the part about `/metrics/slis`.
        let page = results.metrics();
        for line in [
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
            "kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 0\n",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 4\n",
            "kubernetes_healthchecks_total{name=\"syncloop\",status=\"error\",type=\"healthz\"} 1\n",
            "kubernetes_healthchecks_total{name=\"syncloop\",status=\"success\",type=\"healthz\"} 2\n",
        ] {
            assert!(page.contains(line), "{line}{page}");
        }
    }
}
