//! Which tests run, and in which batches.

use regex::Regex;

/// A test of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test {
    /// It is also a [NodeConformance] test.
    pub(crate) node: bool,
    /// Its whole name.
    pub(crate) name: String,
}

/// The tests that were chosen, as batches for one process each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// They may run at the same time.
    pub(crate) parallel: Vec<Vec<String>>,
    /// Each runs while nothing else does.
    pub(crate) serial: Vec<Vec<String>>,
    /// In the focus, and left out by wish.
    pub(crate) skipped: Vec<String>,
}

impl Plan {
    /// How many tests run.
    pub(crate) fn chosen(&self) -> usize {
        self.tests().count()
    }

    /// The tests that run.
    pub(crate) fn tests(&self) -> impl Iterator<Item = &String> {
        self.parallel.iter().chain(&self.serial).flatten()
    }
}

/// Reads a list: area, `N` or `-`, source file and name, separated by tabs; `#` begins a comment. The error is a line's number.
pub(crate) fn read(text: &str) -> Result<Vec<Test>, usize> {
    let mut tests = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let [_, node @ ("N" | "-"), _, name] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(index + 1);
        };
        tests.push(Test { node: node == "N", name: name.to_owned() });
    }
    Ok(tests)
}

/// Chooses by name (those of [NodeConformance] without a focus), and deals the chosen out: small batches, so that a job
/// that has been quick takes more of them.
pub(crate) fn choose(tests: &[Test], focus: Option<&Regex>, skip: Option<&Regex>, jobs: usize) -> Plan {
    let mut plan = Plan::default();
    let (mut parallel, mut serial) = (Vec::new(), Vec::new());
    for test in tests {
        if !focus.map_or(test.node, |focus| focus.is_match(&test.name)) {
            continue;
        }
        if skip.is_some_and(|skip| skip.is_match(&test.name)) {
            plan.skipped.push(test.name.clone());
        } else if test.name.contains("[Serial]") {
            serial.push(test.name.clone());
        } else {
            parallel.push(test.name.clone());
        }
    }
    const BATCHES_PER_JOB: usize = 4;
    let batches = (jobs.max(1) * BATCHES_PER_JOB).min(parallel.len());
    plan.parallel = vec![Vec::new(); batches];
    // Neighbours in the list are of one kind and equally slow: they go to different batches.
    for (index, name) in parallel.into_iter().enumerate() {
        plan.parallel[index % batches].push(name);
    }
    if !serial.is_empty() {
        plan.serial.push(serial);
    }
    plan
}

/// The expression for `--ginkgo.focus` that matches exactly these tests. Ginkgo compares with the suite's name, a space and the test's.
pub(crate) fn focus(batch: &[String]) -> String {
    let names: Vec<String> = batch.iter().map(|name| regex::escape(name)).collect();
    format!("^Kubernetes e2e suite ({})$", names.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# comment\n\
        sig-node\tN\ta.go\t[sig-node] Pods a [NodeConformance] [Conformance]\n\
        sig-node\tN\ta.go\t[sig-node] Pods b [NodeConformance] [Conformance]\n\
        sig-apps\t-\tb.go\t[sig-apps] Job c [Serial] [Conformance]\n";

    #[test]
    fn a_list_is_read_and_bad_lines_are_named() {
        let tests = read(LIST).expect("the list is good");
        assert_eq!(tests.len(), 3);
        assert!(tests[0].node && !tests[2].node);
        assert_eq!(tests[2].name, "[sig-apps] Job c [Serial] [Conformance]");
        assert_eq!(read("a\tN\tb"), Err(1));
        assert_eq!(read("# x\na\tQ\tb\tc"), Err(2));
    }

    #[test]
    fn without_a_focus_the_node_conformance_tests_run() {
        let plan = choose(&read(LIST).expect("good"), None, None, 6);
        assert_eq!(plan.chosen(), 2);
        assert_eq!(plan.parallel.len(), 2, "no batch is empty");
        assert!(plan.serial.is_empty());
    }

    #[test]
    fn focus_and_skip_choose_by_name_and_serial_tests_are_apart() {
        let tests = read(LIST).expect("good");
        let plan = choose(
            &tests,
            Some(&Regex::new("Conformance").expect("good")),
            Some(&Regex::new("Pods b").expect("good")),
            1,
        );
        assert_eq!(plan.parallel, [["[sig-node] Pods a [NodeConformance] [Conformance]"]]);
        assert_eq!(plan.serial, [["[sig-apps] Job c [Serial] [Conformance]"]]);
        assert_eq!(plan.skipped, ["[sig-node] Pods b [NodeConformance] [Conformance]"]);
    }

    #[test]
    fn the_focus_matches_the_names_and_nothing_else() {
        let names = ["[sig-node] a (b) c.".to_owned(), "x+y".to_owned()];
        let focus = Regex::new(&focus(&names)).expect("an expression");
        assert!(names.iter().all(|name| focus.is_match(&format!("Kubernetes e2e suite {name}"))));
        assert!(!focus.is_match("Kubernetes e2e suite [sig-node] a (b) cd"));
        assert!(!focus.is_match("Kubernetes e2e suite xx+y"));
    }
}
