//! Holds the house rules that neither rustc nor clippy can see: the table of rooms in ARCHITECTURE.md, the pure files, the
//! promises of SPECIFICATION.md, the states of docs/compatibility.md, and how a file opens and is called.

#[path = "house/compatibility.rs"]
mod compatibility;
#[path = "house/rules.rs"]
mod rules;
#[path = "house/source.rs"]
mod source;
#[path = "house/tables.rs"]
mod tables;

use std::path::{Path, PathBuf};

use compatibility::{CONTRACT, check_states};
use rules::{check_circles, check_metrics, check_name, check_opening, check_purity, check_rooms, check_static_metrics};
use source::Source;
use tables::{Rooms, promises, pure_files, rooms};

const AGENT: &str = "Rooms of the agent";
const CONTROL_PLANE: &str = "Rooms of the control plane";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text_of(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path} cannot be read: {error}"))
}

/// Every `.rs` file below `folder`, as paths relative to the root of the repository.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a listed folder can be read").path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix(root()).expect("found below the root").to_owned());
            }
        }
    }
    files.sort();
    files
}

fn sources(folder: &str) -> Vec<Source> {
    let below = |path: &PathBuf| path.strip_prefix(folder).expect("listed below it").to_owned();
    rust_files(folder)
        .iter()
        .map(|path| Source::new(&path.to_string_lossy(), &below(path), &text_of(&path.to_string_lossy())))
        .collect()
}

/// Fails with one line per violation.
#[track_caller]
fn none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn check_crate(heading: &str, crate_name: &str, folder: &str) {
    let rooms = rooms(&text_of("ARCHITECTURE.md"), heading);
    let sources = sources(folder);
    let mut violations = check_circles(&rooms);
    violations.extend(sources.iter().flat_map(|source| check_rooms(&rooms, crate_name, source)));
    violations.extend(unlisted_rooms(&rooms, folder));
    none(violations);
}

/// Rooms without a row, and rows without a room.
fn unlisted_rooms(rooms: &Rooms, folder: &str) -> Vec<String> {
    let exists = |room: &str| {
        let path = root().join(folder).join(room);
        path.join("mod.rs").is_file() || path.with_extension("rs").is_file()
    };
    let mut violations: Vec<String> = rooms
        .names()
        .filter(|room| !exists(room))
        .map(|room| format!("ARCHITECTURE.md has a row for `{room}`, but {folder}/{room} does not exist"))
        .collect();
    for entry in std::fs::read_dir(root().join(folder)).expect("the crate has sources") {
        let path = entry.expect("a listed folder can be read").path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !["lib", "main"].contains(&name.as_str()) && !rooms.names().any(|room| room == name) {
            violations
                .push(format!("{folder}/{name}: this room has no row in ARCHITECTURE.md; say there what its job is"));
        }
    }
    violations
}

#[test]
fn agent_rooms_import_only_what_they_may_know() {
    check_crate(AGENT, "stoker", "src");
}

#[test]
fn control_plane_rooms_import_only_what_they_may_know() {
    check_crate(CONTROL_PLANE, "stoker_control_plane", "control-plane/src");
}

#[test]
fn pure_files_do_nothing_but_think() {
    let mut violations = Vec::new();
    for pure in pure_files(&text_of("ARCHITECTURE.md")) {
        if !root().join(&pure).is_file() {
            violations.push(format!("ARCHITECTURE.md calls {pure} pure, but there is no such file"));
        }
        // `plan.rs` speaks for `plan/*.rs` too.
        let below = pure.trim_end_matches(".rs").to_owned();
        let parts = rust_files(&below).into_iter().map(|path| path.to_string_lossy().into_owned());
        for path in std::iter::once(pure.clone()).chain(parts).filter(|path| root().join(path).is_file()) {
            violations.extend(check_purity(&Source::new(&path, Path::new(&path), &text_of(&path))));
        }
    }
    none(violations);
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let promises = promises(&text_of("SPECIFICATION.md"));
    assert!(!promises.is_empty(), "SPECIFICATION.md promises nothing, or its table has another shape");
    let mut violations = Vec::new();
    for promise in promises {
        if promise.enforced_by.is_empty() && !promise.says_not_enforced {
            violations
                .push(format!("{}: name its test as `path/to/file.rs::name`, or write `not enforced yet`", promise.id));
        }
        for (file, name) in promise.enforced_by {
            let text = std::fs::read_to_string(root().join(&file)).unwrap_or_default();
            if !text.contains(&format!("fn {name}(")) {
                violations.push(format!("{}: there is no `{name}` in {file}", promise.id));
            }
        }
    }
    none(violations);
}

#[test]
fn every_row_of_the_contract_has_a_state_that_is_true() {
    let text_of = |path: &str| std::fs::read_to_string(root().join(path)).ok();
    none(check_states(&text_of("docs/compatibility.md").unwrap_or_default(), CONTRACT, text_of));
}

#[test]
fn files_open_with_their_one_job_and_are_called_by_it() {
    let mut violations = Vec::new();
    for folder in ["src", "model", "control-plane", "tests", "benches", "examples", "packaging"] {
        for path in rust_files(folder) {
            let path = path.to_string_lossy();
            violations.extend(check_opening(&path, &text_of(&path)));
            violations.extend(check_name(&path));
        }
    }
    violations.extend(check_opening("build.rs", &text_of("build.rs")));
    none(violations);
}

#[test]
fn every_metric_is_counted_by_somebody() {
    let mut violations = Vec::new();
    for folder in ["src", "control-plane/src"] {
        for path in rust_files(folder).iter().filter(|path| path.ends_with("metrics.rs")) {
            let room = path.strip_prefix(folder).ok().and_then(|below| below.iter().next()).expect("it lies in a room");
            let room = format!("{folder}/{}", room.to_string_lossy());
            let texts: Vec<String> = rust_files(&room).iter().map(|file| text_of(&file.to_string_lossy())).collect();
            let path = path.to_string_lossy();
            violations.extend(check_metrics(&path, &text_of(&path), &texts));
        }
    }
    // A23.3: those of kubelet are statics that any room may count.
    let statics = "model/src/metrics/kubelet.rs";
    let agent: Vec<String> = rust_files("src").iter().map(|file| text_of(&file.to_string_lossy())).collect();
    violations.extend(check_static_metrics(statics, &text_of(statics), &agent));
    none(violations);
}
