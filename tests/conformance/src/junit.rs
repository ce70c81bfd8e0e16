//! Reads the JUnit reports of the e2e binary.

use std::collections::BTreeMap;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// What came of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Result {
    Passed,
    Failed,
    Skipped,
}

/// A result, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) result: Result,
    /// Empty where a test passed.
    pub(crate) reason: String,
}

/// What a report says, by the test's name. A report that breaks off gives what stands before the break.
pub(crate) fn read(xml: &str) -> BTreeMap<String, Outcome> {
    let mut outcomes = BTreeMap::new();
    let mut reader = Reader::from_str(xml);
    let mut current: Option<(String, Outcome)> = None;
    loop {
        let (element, closed) = match reader.read_event() {
            Ok(Event::Start(element)) => (element, false),
            Ok(Event::Empty(element)) => (element, true),
            Ok(Event::End(element)) if element.name().as_ref() == "testcase" => {
                outcomes.extend(current.take());
                continue;
            }
            Ok(Event::Eof) | Err(_) => return outcomes,
            Ok(_) => continue,
        };
        match element.name().as_ref() {
            "testcase" => {
                // `[It] ` is the kind of the node; setup and teardown of the suite have other kinds, and are no tests.
                let Some(name) =
                    attribute(&element, "name").and_then(|name| name.strip_prefix("[It] ").map(str::to_owned))
                else {
                    continue;
                };
                let case =
                    (without_labels(&name).to_owned(), Outcome { result: Result::Passed, reason: String::new() });
                if closed {
                    outcomes.extend([case]);
                } else {
                    current = Some(case);
                }
            }
            kind @ ("failure" | "error" | "skipped") => {
                if let Some((_, outcome)) = &mut current {
                    outcome.result = if kind == "skipped" { Result::Skipped } else { Result::Failed };
                    outcome.reason = attribute(&element, "message").unwrap_or_default();
                }
            }
            _ => {}
        }
    }
}

/// Ginkgo writes a test's labels behind its name, as in ` [sig-node, Conformance]`.
fn without_labels(name: &str) -> &str {
    match name.rsplit_once(" [") {
        Some((rest, labels)) if labels.contains(", ") && labels.ends_with(']') => rest,
        _ => name,
    }
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = element.try_get_attribute(name).ok().flatten()?;
    Some(attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="3"><testsuite name="Kubernetes e2e suite">
<testcase name="[ReportBeforeSuite]" status="passed"></testcase>
<testcase name="[It] [sig-node] a &quot;b&quot;" status="passed"/>
<testcase name="[It] [sig-node] c [Conformance] [sig-node, Conformance]" status="failed"><failure message="timed out &amp; gone" type="failed">long text</failure><system-err>x</system-err></testcase>
<testcase name="[It] [sig-node] d" status="skipped"><skipped message="skipped - needs two nodes"></skipped></testcase>
</testsuite></testsuites>"#;

    #[test]
    fn each_test_has_its_outcome() {
        let outcomes = read(REPORT);
        assert_eq!(outcomes.len(), 3);
        assert_eq!(outcomes["[sig-node] a \"b\""].result, Result::Passed);
        assert_eq!(
            outcomes["[sig-node] c [Conformance]"],
            Outcome { result: Result::Failed, reason: "timed out & gone".to_owned() }
        );
        assert_eq!(outcomes["[sig-node] d"].result, Result::Skipped);
    }

    #[test]
    fn a_report_that_breaks_off_still_counts() {
        let half = &REPORT[..REPORT.find("status=\"skipped\"").expect("it is there")];
        assert_eq!(read(half).len(), 2);
        assert!(read("no xml < at all").is_empty());
    }
}
