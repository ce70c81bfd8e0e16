//! Checks docs/compatibility.md: every row of the contract once, in one of four states, and every cited test names its row.

/// The shape of the contract: rows per section. A name with a dot is a row whose parts have letters.
pub(crate) const CONTRACT: &[(&str, usize)] = &[
    ("A1", 21),
    ("A2", 23),
    ("A3", 15),
    ("A4", 10),
    ("A5", 13),
    ("A6", 8),
    ("A7", 7),
    ("A8", 8),
    ("A9", 26),
    ("A10", 12),
    ("A11", 12),
    ("A12", 12),
    ("A13", 12),
    ("A14", 9),
    ("A15", 16),
    ("A16", 12),
    ("A17", 5),
    ("A18", 20),
    ("A19", 9),
    ("A20", 8),
    ("A21", 3),
    ("A22.1", 13),
    ("A22.2", 6),
    ("A23", 4),
    ("B1", 30),
    ("B2", 11),
    ("C1", 22),
    ("C2", 5),
    ("C3", 25),
    ("C4", 40),
    ("C5", 18),
    ("C6", 5),
    ("C7", 15),
    ("C8", 6),
    ("D1", 42),
];

/// What is wrong with the document: `contract` is the shape, `text_of` reads a file of the repository.
pub(crate) fn check_states(
    document: &str,
    contract: &[(&str, usize)],
    text_of: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut missing: Vec<String> = contract.iter().flat_map(ids).collect();
    let known = missing.clone();
    let mut violations = Vec::new();
    for line in document.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        if cells[0] == "ID" || cells[0].starts_with('-') {
            continue;
        }
        let &[id, meaning, state] = cells.as_slice() else {
            violations.push(format!("{}: a row has three cells: ID, meaning, state", cells[0]));
            continue;
        };
        if let Some(at) = missing.iter().position(|expected| expected == id) {
            missing.remove(at);
        } else if known.iter().any(|expected| expected == id) {
            violations.push(format!("{id}: this row is there twice"));
        } else {
            violations.push(format!("{id}: the contract has no such row"));
        }
        if meaning.is_empty() {
            violations.push(format!("{id}: say in a few words what it means"));
        }
        violations.extend(check_state(id, state, &text_of));
    }
    violations.extend(missing.iter().map(|id| format!("{id}: this row is missing")));
    violations
}

fn ids(&(name, count): &(&str, usize)) -> Vec<String> {
    if name.contains('.') {
        (b'a'..).take(count).map(|letter| format!("{name}{}", char::from(letter))).collect()
    } else {
        (1..=count).map(|number| format!("{name}.{number}")).collect()
    }
}

fn check_state(id: &str, state: &str, text_of: impl Fn(&str) -> Option<String>) -> Vec<String> {
    if state == "open" || state.strip_prefix("excluded: ").is_some_and(|reason| !reason.is_empty()) {
        return Vec::new();
    }
    let mut violations = Vec::new();
    for citation in state.strip_prefix("partly: ").unwrap_or(state).split(", ") {
        let quoted = citation.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
        let Some((file, name)) = quoted.and_then(|path| path.split_once("::")) else {
            return vec![format!(
                "{id}: `{state}` is no state; write `open`, `excluded: why`, `file.rs::test` or `partly: file.rs::test`"
            )];
        };
        match text_of(file).map(|text| test_in(&text, name)) {
            None => violations.push(format!("{id}: there is no file {file}")),
            Some(None) => violations.push(format!("{id}: there is no test `{name}` in {file}")),
            Some(Some(test)) if !names(&test, id) => {
                violations.push(format!("{id}: the test `{name}` in {file} does not name the row"));
            }
            Some(Some(_)) => {}
        }
    }
    violations
}

/// A test function with the comments and attributes above it; `None` if there is none, or it is no test.
fn test_in(text: &str, name: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let declared = |line: &str| {
        line.split_once("fn ")
            .is_some_and(|(_, rest)| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')))
    };
    let at = lines.iter().position(|line| !line.trim_start().starts_with("//") && declared(line))?;
    let above = |line: &&&str| line.trim_start().starts_with("//") || line.trim_start().starts_with("#[");
    let first = at - lines[..at].iter().rev().take_while(above).count();
    lines[first..at].iter().find(|line| line.trim_start().starts_with("#[") && line.contains("test"))?;
    // rustfmt puts a function's last brace as far in as its first line.
    let indent = lines[at].len() - lines[at].trim_start().len();
    let end = format!("{}}}", &lines[at][..indent]);
    let length = lines[at..].iter().position(|line| *line == end).unwrap_or(0);
    Some(lines[first..=at + length].join("\n"))
}

/// Whether `text` has `id` as a whole word: D9.1 is not in D9.15.
fn names(text: &str, id: &str) -> bool {
    text.match_indices(id).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let mut after = text[at + id.len()..].chars();
        let next = after.next();
        let goes_on = next == Some('.') && after.next().is_some_and(|c| c.is_ascii_digit());
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.')
            && !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
            && !goes_on
    })
}

mod tests {
    use super::*;

    const SOURCE: &str = "\
/// D9.1: all of it.
#[test]
fn one() {}

// D9.2
#[tokio::test(flavor = \"multi_thread\")]
async fn two() {
    check(\"D9.15\");
}

fn helper() {
    // D9.1
}
";

    #[track_caller]
    fn check(rows: &[(&str, &str)], expected: &[&str]) {
        let rows: String = rows.iter().map(|(id, state)| format!("| {id} | m | {state} |\n")).collect();
        let document = format!("| ID | meaning | state |\n|---|---|---|\n{rows}");
        let text_of = |file: &str| (file == "a.rs").then(|| SOURCE.to_owned());
        assert_eq!(check_states(&document, &[("D9", 2)], text_of), expected);
    }

    #[test]
    fn the_four_states_are_accepted() {
        check(&[("D9.1", "`a.rs::one`"), ("D9.2", "partly: `a.rs::two`")], &[]);
        check(&[("D9.1", "open"), ("D9.2", "excluded: nobody uses it")], &[]);
    }

    #[test]
    fn rows_are_there_once() {
        check(&[("D9.1", "open")], &["D9.2: this row is missing"]);
        check(&[("D9.1", "open"), ("D9.2", "open"), ("D9.1", "open")], &["D9.1: this row is there twice"]);
        check(&[("D9.1", "open"), ("D9.2", "open"), ("D9.3", "open")], &["D9.3: the contract has no such row"]);
        check(
            &[("D9.1", "open | "), ("D9.2", "open")],
            &["D9.1: a row has three cells: ID, meaning, state", "D9.1: this row is missing"],
        );
        assert_eq!(
            check_states("| D9.1 | | open |", &[("D9", 1)], |_| None),
            ["D9.1: say in a few words what it means"]
        );
    }

    #[test]
    fn letters_are_parts_of_a_row() {
        assert_eq!(ids(&("D9.2", 3)), ["D9.2a", "D9.2b", "D9.2c"]);
    }

    #[test]
    fn cited_tests_exist_and_name_the_row() {
        let second = ("D9.2", "open");
        check(&[("D9.1", "`b.rs::one`"), second], &["D9.1: there is no file b.rs"]);
        check(&[("D9.1", "`a.rs::on`"), second], &["D9.1: there is no test `on` in a.rs"]);
        check(&[("D9.1", "`a.rs::helper`"), second], &["D9.1: there is no test `helper` in a.rs"]);
        let unnamed = "D9.1: the test `two` in a.rs does not name the row";
        check(&[("D9.1", "`a.rs::two`"), second], &[unnamed]);
        check(&[("D9.1", "partly: `a.rs::one`, `a.rs::two`"), second], &[unnamed]);
    }

    #[test]
    fn other_states_are_refused() {
        for state in ["", "done", "a.rs::one", "excluded: ", "partly", "partly: soon"] {
            let document = format!("| D9.1 | m | {state} |");
            let found = check_states(&document, &[("D9", 1)], |_| Some(SOURCE.to_owned()));
            assert_eq!(found.len(), 1, "{state}");
            assert!(found[0].contains("is no state"), "{found:?}");
        }
    }
}
