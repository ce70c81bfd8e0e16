//! The table of results.

use std::collections::BTreeMap;

use crate::junit::{Outcome, Result};
use crate::plan::Plan;

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) test: String,
    pub(crate) result: Result,
    pub(crate) reason: String,
}

/// A row for each test of the plan, by name. A test that no report names has failed: its process ended before it.
pub(crate) fn rows(plan: &Plan, outcomes: &BTreeMap<String, Outcome>) -> Vec<Row> {
    let ran = plan.tests().map(|test| {
        let outcome = outcomes.get(test).cloned().unwrap_or_else(|| Outcome {
            result: Result::Failed,
            reason: "no report names it: the e2e binary does not have it, or ended before it".to_owned(),
        });
        Row { test: test.clone(), result: outcome.result, reason: outcome.reason }
    });
    let skipped = plan.skipped.iter().map(|test| Row {
        test: test.clone(),
        result: Result::Skipped,
        reason: "left out with --skip".to_owned(),
    });
    let mut rows: Vec<Row> = ran.chain(skipped).collect();
    rows.sort_by(|one, other| one.test.cmp(&other.test));
    rows
}

/// Tab-separated: test, result, reason, on one line each.
pub(crate) fn text(rows: &[Row]) -> String {
    let mut text = "# test\tresult\treason\n".to_owned();
    for row in rows {
        let result = match row.result {
            Result::Passed => "passed",
            Result::Failed => "failed",
            Result::Skipped => "skipped",
        };
        let reason = row.reason.split_whitespace().collect::<Vec<_>>().join(" ");
        text.push_str(&format!("{}\t{result}\t{reason}\n", row.test));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_of_the_plan_has_a_row() {
        let plan = Plan {
            parallel: vec![vec!["b".into(), "a".into()]],
            serial: vec![vec!["c".into()]],
            skipped: vec!["d".into()],
        };
        let outcomes = BTreeMap::from([
            ("a".to_owned(), Outcome { result: Result::Passed, reason: String::new() }),
            ("c".to_owned(), Outcome { result: Result::Failed, reason: "two\n\tlines".to_owned() }),
        ]);
        let text = text(&rows(&plan, &outcomes));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[1], "a\tpassed\t");
        assert!(lines[2].starts_with("b\tfailed\tno report names it"));
        assert_eq!(lines[3], "c\tfailed\ttwo lines");
        assert_eq!(lines[4], "d\tskipped\tleft out with --skip");
    }
}
