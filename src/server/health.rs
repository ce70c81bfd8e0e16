//! `/healthz` and its checks, in the words of Kubernetes' health checks (A18.1).

use http::StatusCode;

use super::reply::{self, Reply};

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
    pub(super) fn answer(self, alive: bool, verbose: bool, excluded: &[&str]) -> Reply {
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
        for (name, good) in [("ping", true), ("log", true), ("syncloop", alive)] {
            if excluded.contains(&name) {
                page.push_str(&format!("[+]{name} excluded: ok\n"));
            } else if good {
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
        let answer = async |check: Check, alive, verbose, excluded: &[&str]| {
            let reply = check.answer(alive, verbose, excluded);
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
    }
}
