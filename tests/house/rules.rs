//! The rules themselves: each takes what was read and returns one line per violation, which says what to do instead.

use std::collections::BTreeSet;

use crate::source::{Named, Source};
use crate::tables::Rooms;

/// Imports from rooms that the table does not allow.
pub(crate) fn check_rooms(rooms: &Rooms, crate_name: &str, source: &Source) -> Vec<String> {
    let room = source.room();
    let targets: BTreeSet<&str> = source.named.iter().filter_map(|path| target(rooms, crate_name, path)).collect();
    targets
        .into_iter()
        .filter(|target| !rooms.may(room, target))
        .map(|target| {
            format!(
                "{}: `{room}` may not import `{target}`; put the shared type in `model`, or let `cli` pass a handle",
                source.path
            )
        })
        .collect()
}

/// The room that a path leads to.
fn target<'a>(rooms: &Rooms, crate_name: &str, path: &'a Named) -> Option<&'a str> {
    let [first, second, ..] = path.as_slice() else { return None };
    let ours = first == "crate" || first == crate_name;
    (ours && rooms.names().any(|room| room == second)).then_some(second)
}

/// Circles in the table, and rooms it mentions without a row. Imports keep to the table, so they have no circle either.
pub(crate) fn check_circles(rooms: &Rooms) -> Vec<String> {
    let mut violations = Vec::new();
    for (room, known) in &rooms.knows {
        for target in known.iter().filter(|target| !rooms.names().any(|name| name == *target)) {
            violations.push(format!("ARCHITECTURE.md: `{room}` knows of `{target}`, which has no row"));
        }
        let mut reached = BTreeSet::new();
        let mut open: Vec<&String> = known.iter().collect();
        while let Some(next) = open.pop() {
            if reached.insert(next) {
                open.extend(rooms.knows.get(next).into_iter().flatten());
            }
        }
        if reached.contains(room) {
            violations.push(format!("ARCHITECTURE.md: `{room}` knows, through others, of itself"));
        }
    }
    violations
}

/// Crates that do I/O, `std::fs`, and reads of a clock in a file that is said to be pure.
pub(crate) fn check_purity(source: &Source) -> Vec<String> {
    let impure = |path: &Named| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let does_io = matches!(
            path.as_slice(),
            ["tokio" | "kube" | "tonic" | "hyper" | "axum" | "rustix" | "inotify", ..]
                | ["std", "fs" | "io" | "process" | "thread", ..]
                | ["std", "net", "TcpStream" | "TcpListener" | "UdpSocket"]
                | ["std", "env", ..]
        );
        let reads_clock = path.ends_with(&["clock", "Clock"])
            || path.windows(2).any(|pair| matches!(pair, ["Instant" | "SystemTime" | "Timestamp" | "Zoned", "now"]))
            || matches!(path.as_slice(), ["std", "time", "Instant" | "SystemTime", ..]);
        does_io || reads_clock
    };
    let found: BTreeSet<String> = source.named.iter().filter(|path| impure(path)).map(|path| path.join("::")).collect();
    found
        .into_iter()
        .map(|path| {
            format!("{}: a pure file may not name `{path}`; take it as an argument or return a step", source.path)
        })
        .collect()
}

/// A file says in its first line what its one job is.
pub(crate) fn check_opening(path: &str, text: &str) -> Option<String> {
    (!text.starts_with("//! ")).then(|| format!("{path}: start the file with `//! ` and its one job"))
}

/// Names that tell nothing.
pub(crate) fn check_name(path: &str) -> Option<String> {
    const EMPTY: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "manager", "misc"];
    let empty = path.trim_end_matches(".rs").split(['/', '_', '-']).find(|part| EMPTY.contains(part))?;
    Some(format!("{path}: `{empty}` says nothing; call it by the thing that it holds"))
}

/// Metrics of a `metrics.rs` that no code of the room ever counts: one that stands still is worse than none. `room`: the room's sources.
pub(crate) fn check_metrics(path: &str, text: &str, room: &[String]) -> Vec<String> {
    let production = |text: &str| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    let room: Vec<String> = room.iter().map(|text| production(text)).collect();
    let is_counted = |name: &str| {
        let used = format!(".{name}");
        room.iter().any(|text| {
            text.match_indices(&used).any(|(at, _)| {
                let rest = &text[at + used.len()..];
                let ends_here = !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
                let statement = rest.split(';').next().unwrap_or_default();
                ends_here
                    && [".inc(", ".inc_by(", ".observe(", ".set(", ".dec("].iter().any(|call| statement.contains(call))
            })
        })
    };
    let kinds = ["Counter", "Gauge", "Histogram"];
    let fields = production(text);
    let fields = fields.lines().filter(|line| line.starts_with("    ") && line.ends_with(','));
    let bare = |line: &'_ str| -> String {
        let line = line.trim();
        let rest = ["pub(super) ", "pub(crate) ", "pub "].iter().find_map(|prefix| line.strip_prefix(prefix));
        rest.unwrap_or(line).to_owned()
    };
    let fields: Vec<String> = fields.map(bare).filter(|line| !line.contains('(')).collect();
    let fields = fields.iter().filter_map(|line| line.split_once(": "));
    fields
        .filter(|(name, kind)| kinds.iter().any(|is| kind.contains(is)) && !kind.contains("::") && !name.contains(' '))
        .filter(|(name, _)| !is_counted(name))
        .map(|(name, _)| format!("{path}: nobody counts the metric `{name}`; count it, or do not offer it"))
        .collect()
}

/// The same of metrics that are statics, `NAME: Counter(`, and counted as `metrics::NAME.inc(`.
pub(crate) fn check_static_metrics(path: &str, text: &str, agent: &[String]) -> Vec<String> {
    let production = |text: &str| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    let agent: Vec<String> = agent.iter().map(|text| production(text)).collect();
    let kinds = ["Counter(", "Histogram(", "Expiry("];
    // Kubelet's page has them, and here neither can fail (A15.7).
    let never = ["POD_RESOURCES_ERRORS_LIST", "POD_RESOURCES_ERRORS_ALLOCATABLE"];
    let named = text.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
    named
        .filter(|(name, _)| !never.contains(name))
        .filter(|(name, kind)| kinds.iter().any(|is| kind.starts_with(is)) && !name.contains(' '))
        .filter(|(name, _)| {
            let counted = ["inc(", "observe(", "set("].map(|call| format!("metrics::{name}.{call}"));
            !agent.iter().any(|text| counted.iter().any(|call| text.contains(call)))
        })
        .map(|(name, _)| format!("{path}: nobody counts the metric `{name}`; count it, or do not offer it"))
        .collect()
}

mod tests {
    use std::path::Path;

    use super::*;
    use crate::tables::rooms;

    const TABLE: &str = "## R\n| `cli` | | everything |\n| `pod` | | clock |\n| `clock` | | |\n| `node` | | |\n";

    fn check(below: &str, text: &str) -> Vec<String> {
        check_rooms(&rooms(TABLE, "R"), "stoker", &Source::new(below, Path::new(below), text))
    }

    #[test]
    fn a_metric_that_nobody_counts_is_found() {
        let text = "struct Metrics {\n    asked: Counter,\n    held: Labelled<L, Gauge>,\n    took: Histogram,\n    name: String,\n}\n\
                    #[cfg(test)]\nmod tests { fn f() { m.took.observe(1.0); } }";
        let room =
            ["fn f() { m.asked.inc(); self.held.get_or_create(&labels).set(1); m.took_other.observe(1.0); }", text]
                .map(str::to_owned);
        let found = check_metrics("metrics.rs", text, &room);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("`took`"), "{found:?}");
    }

    #[test]
    fn a_static_metric_that_nobody_counts_is_found() {
        // A23.3
        let text = "metrics! {\n    /// Asked.\n    ASKED: Counter(\n    );\n    TOOK: Histogram(\n    );\n    ENDS: Expiry(\n    );\n}\n";
        let agent = ["fn f() { metrics::ASKED.inc(&[]); metrics::ENDS.set(1); }\n\
                      #[cfg(test)]\nmod tests { fn f() { metrics::TOOK.observe(&[], t); } }"
            .to_owned()];
        let found = check_static_metrics("kubelet.rs", text, &agent);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("`TOOK`"), "{found:?}");
    }

    #[test]
    fn a_forbidden_import_is_found_however_it_is_written() {
        assert_eq!(check("pod/worker.rs", "use crate::clock::Now;"), [""; 0]);
        assert_eq!(check("cli/run.rs", "use crate::{pod, node};"), [""; 0]);
        assert_eq!(check("main.rs", "fn main() { stoker::cli::main() }"), [""; 0]);
        for text in [
            "use crate::node::Snapshot;",
            "use crate::{clock::Now, node};",
            "use super::super::node;",
            "fn f() { crate::node::go() }",
            "pub(crate) use crate::node as other;",
            "mod tests { use super::super::super::node::*; }",
        ] {
            let found = check("pod/worker.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("pod/worker.rs: `pod` may not import `node`"), "{}", found[0]);
        }
    }

    #[test]
    fn a_circle_is_found() {
        let circle = rooms("## R\n| `a` | | b |\n| `b` | | c |\n| `c` | | a |\n| `d` | | a |\n", "R");
        assert_eq!(check_circles(&circle).len(), 3);
        assert_eq!(check_circles(&rooms(TABLE, "R")), [""; 0]);
        assert_eq!(check_circles(&rooms("## R\n| `a` | | gone |\n", "R")).len(), 1);
    }

    #[test]
    fn impurity_is_found() {
        let check = |text| check_purity(&Source::new("plan.rs", Path::new("plan.rs"), text)).len();
        assert_eq!(check("use crate::clock::Now; use std::{net::IpAddr, time::Duration}; use jiff::Timestamp;"), 0);
        for text in [
            "use tokio::sync::watch;",
            "use std::{fs, time::Duration};",
            "use std::time::Instant;",
            "fn f() { jiff::Timestamp::now() }",
            "use crate::clock::{Clock, Now};",
            "fn f() { std::fs::read(\"x\") }",
            "use kube::Api;",
        ] {
            assert_eq!(check(text), 1, "{text}");
        }
    }

    #[test]
    fn empty_names_and_openings_are_found() {
        assert!(check_name("src/pod/utils.rs").is_some() && check_name("src/volume_manager/mod.rs").is_some());
        assert!(check_name("src/pod/plan.rs").is_none());
        assert!(check_opening("a.rs", "use x;").is_some() && check_opening("a.rs", "//! Job.\n").is_none());
    }
}
