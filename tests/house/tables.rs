//! Reads the tables of ARCHITECTURE.md and SPECIFICATION.md that the house rules hold.

use std::collections::{BTreeMap, BTreeSet};

/// Which room may know of which.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rooms {
    /// Rooms that may know everything.
    pub(crate) of_all: BTreeSet<String>,
    /// What each of the other rooms may know, beside itself.
    pub(crate) knows: BTreeMap<String, BTreeSet<String>>,
}

impl Rooms {
    /// All rooms.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.of_all.iter().chain(self.knows.keys()).map(String::as_str)
    }

    /// Whether `room` may import from `target`.
    pub(crate) fn may(&self, room: &str, target: &str) -> bool {
        room == target || self.of_all.contains(room) || self.knows.get(room).is_some_and(|known| known.contains(target))
    }
}

/// The lines below the heading, up to the next one.
fn section<'a>(text: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let heading = format!("## {heading}");
    text.lines().skip_while(move |line| *line != heading).skip(1).take_while(|line| !line.starts_with("## "))
}

/// The cells of each row whose first cell is in backticks or a plain ID; headings and rulers are left out.
fn rows<'a>(lines: impl Iterator<Item = &'a str>) -> impl Iterator<Item = Vec<&'a str>> {
    lines
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// The pieces between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Reads the table of rooms below `heading`.
pub(crate) fn rooms(architecture: &str, heading: &str) -> Rooms {
    let mut rooms = Rooms::default();
    for cells in rows(section(architecture, heading)) {
        let (Some(name), Some(known)) = (quoted(cells[0]).next(), cells.get(2)) else { continue };
        if known.starts_with("everything") {
            rooms.of_all.insert(name.to_owned());
        } else {
            let known = known.split(',').map(|room| room.trim().trim_matches('`').to_owned());
            rooms.knows.insert(name.to_owned(), known.filter(|room| !room.is_empty()).collect());
        }
    }
    assert!(!rooms.knows.is_empty(), "ARCHITECTURE.md has no table below \"## {heading}\"");
    rooms
}

/// The files that ARCHITECTURE.md calls pure.
pub(crate) fn pure_files(architecture: &str) -> Vec<String> {
    let text = section(architecture, "Pure files").collect::<Vec<_>>().join("\n");
    let files: Vec<String> = quoted(&text).filter(|name| name.ends_with(".rs")).map(str::to_owned).collect();
    assert!(!files.is_empty(), "ARCHITECTURE.md names no pure files");
    files
}

/// One row of SPECIFICATION.md.
#[derive(Debug, PartialEq)]
pub(crate) struct Promise {
    /// Its ID.
    pub(crate) id: String,
    /// File and function of each test or bench.
    pub(crate) enforced_by: Vec<(String, String)>,
    /// The row admits that nothing enforces it.
    pub(crate) says_not_enforced: bool,
}

/// The rows of every table of SPECIFICATION.md: `| ID | promise | number | enforced by |`.
pub(crate) fn promises(specification: &str) -> Vec<Promise> {
    rows(specification.lines())
        .filter(|cells| cells.len() == 4 && cells[0] != "ID")
        .map(|cells| Promise {
            id: cells[0].to_owned(),
            enforced_by: quoted(cells[3])
                .filter_map(|name| name.split_once(".rs::"))
                .map(|(file, name)| (format!("{file}.rs"), name.to_owned()))
                .collect(),
            says_not_enforced: cells[3].contains("not enforced yet"),
        })
        .collect()
}

mod tests {
    use super::*;

    #[test]
    fn a_table_of_rooms_is_read() {
        let text = "## Rooms\n| room | job | knows of |\n|---|---|---|\n| `cli` | x | everything |\n\
            | `pod` | a | clock, `volume` |\n| `clock` | b | |\n## Other\n| `no` | c | |\n";
        let rooms = rooms(text, "Rooms");
        assert_eq!(rooms.names().collect::<Vec<_>>(), ["cli", "clock", "pod"]);
        assert!(rooms.may("pod", "volume") && rooms.may("cli", "pod") && rooms.may("clock", "clock"));
        assert!(!rooms.may("clock", "pod"));
    }

    #[test]
    fn promises_are_read() {
        let text = "| ID | promise | number | enforced by |\n|---|---|---|---|\n\
            | P1 | quick | 5 ms | `benches/a.rs::quick` |\n| P2 | small | 9 MB | not enforced yet |\n";
        let found = promises(text);
        assert_eq!(found[0].enforced_by, [("benches/a.rs".to_owned(), "quick".to_owned())]);
        assert!(found[1].says_not_enforced && found[1].enforced_by.is_empty());
    }
}
