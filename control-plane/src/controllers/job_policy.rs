//! What a Job's own rules make of pods that failed or succeeded: podFailurePolicy, backoffLimitPerIndex, successPolicy
//! (C7.5). Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::job_status::{index_of, is_indexed, is_tracked, number, parse_indexes};
use crate::resources::tree::{items, text};

/// Annotation of a pod: how often its index failed before.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

/// What a pod's failure means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// One failure more.
    Count,
    /// None.
    Ignore,
    /// Its index is not tried again.
    FailIndex,
    /// The Job has failed, and why.
    FailJob(String),
}

/// The first rule that fits; a failure that none fits counts.
pub(super) fn meaning(job: &Value, pod: &Value) -> Meaning {
    for (at, rule) in items(&job["spec"]["podFailurePolicy"], "rules").enumerate() {
        let action = text(rule, "action");
        let Some(what) = by_exit_code(rule, pod).or_else(|| by_condition(rule, pod)) else { continue };
        return match action {
            "Ignore" => Meaning::Ignore,
            "FailIndex" if !job["spec"]["backoffLimitPerIndex"].is_null() => Meaning::FailIndex,
            "FailJob" => Meaning::FailJob(format!("{what} matching {action} rule at index {at}")),
            _ => Meaning::Count,
        };
    }
    Meaning::Count
}

fn place(pod: &Value) -> String {
    format!("{}/{}", text(&pod["metadata"], "namespace"), text(&pod["metadata"], "name"))
}

fn by_exit_code(rule: &Value, pod: &Value) -> Option<String> {
    let asked = &rule["onExitCodes"];
    if !asked.is_object() {
        return None;
    }
    let statuses =
        ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|key| items(&pod["status"], key));
    for status in statuses {
        let name = text(status, "name");
        let wanted = asked["containerName"].as_str().is_none_or(|wanted| wanted == name);
        let Some(code) = status["state"]["terminated"]["exitCode"].as_i64().filter(|code| *code != 0 && wanted) else {
            continue;
        };
        let is_in = items(asked, "values").any(|value| value.as_i64() == Some(code));
        if is_in == (text(asked, "operator") == "In") {
            return Some(format!("Container {name} for pod {} failed with exit code {code}", place(pod)));
        }
    }
    None
}

fn by_condition(rule: &Value, pod: &Value) -> Option<String> {
    for asked in items(rule, "onPodConditions") {
        let status = asked["status"].as_str().filter(|status| !status.is_empty()).unwrap_or("True");
        let has = |condition: &Value| condition["type"] == asked["type"] && condition["status"] == status;
        if items(&pod["status"], "conditions").any(has) {
            return Some(format!("Pod {} has condition {}", place(pod), text(asked, "type")));
        }
    }
    None
}

/// Why a rule ends the Job, if a pod that was not counted yet failed so.
pub(super) fn fails_job(job: &Value, pods: &[Arc<Value>]) -> Option<String> {
    let failed = pods.iter().filter(|pod| is_tracked(pod) && text(&pod["status"], "phase") == "Failed");
    failed.map(|pod| meaning(job, pod)).find_map(|meaning| match meaning {
        Meaning::FailJob(why) => Some(why),
        _ => None,
    })
}

/// How often an index failed, by the pods that are there: each knows how often it had failed before it.
pub(super) fn failures_of(job: &Value, pods: &[Arc<Value>], index: usize) -> usize {
    let of_index = pods.iter().filter(|pod| index_of(pod) == Some(index) && text(&pod["status"], "phase") == "Failed");
    let counts = of_index.map(|pod| {
        let before = text(&pod["metadata"]["annotations"], FAILURES).parse().unwrap_or(0);
        before + usize::from(meaning(job, pod) != Meaning::Ignore)
    });
    counts.max().unwrap_or(0)
}

/// The indexes that are not tried again; `None`: the Job has no limit for each.
pub(super) fn failed_indexes(job: &Value, pods: &[Arc<Value>]) -> Option<BTreeSet<usize>> {
    let limit = number(job["spec"].get("backoffLimitPerIndex").filter(|limit| limit.is_u64())?);
    if !is_indexed(job) {
        return None;
    }
    let mut failed = parse_indexes(text(&job["status"], "failedIndexes"));
    let failures = pods.iter().filter(|pod| text(&pod["status"], "phase") == "Failed");
    for (index, pod) in failures.filter_map(|pod| Some((index_of(pod)?, pod))) {
        if failures_of(job, pods, index) > limit || meaning(job, pod) == Meaning::FailIndex {
            failed.insert(index);
        }
    }
    let completions = number(&job["spec"]["completions"]);
    let succeeded = parse_indexes(text(&job["status"], "completedIndexes"));
    failed.retain(|index| *index < completions && !succeeded.contains(index));
    Some(failed)
}

/// The first rule of the success policy that these indexes fulfil.
pub(super) fn fulfilled(job: &Value, succeeded: &BTreeSet<usize>) -> Option<usize> {
    items(&job["spec"]["successPolicy"], "rules").position(|rule| {
        let named = rule["succeededIndexes"].as_str().map(parse_indexes);
        let enough = rule["succeededCount"].as_u64().and_then(|count| usize::try_from(count).ok());
        match (named, enough) {
            (Some(named), Some(enough)) => named.intersection(succeeded).count() >= enough,
            (Some(named), None) => named.is_subset(succeeded),
            (None, Some(enough)) => succeeded.len() >= enough,
            (None, None) => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::job_status::{FINALIZER, INDEX};
    use super::*;

    fn failed(index: &str, code: i64, before: &str) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": "p", "namespace": "ns", "finalizers": [FINALIZER],
            "annotations": {INDEX: index, FAILURES: before}},
            "status": {"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}]}}))
    }

    #[test]
    fn the_first_rule_that_fits_says_what_a_failure_means() {
        // C7.5
        let codes = |action: &str, operator: &str, values: &[i64]| json!({"action": action, "onExitCodes": {"operator": operator, "values": values}});
        let gone = json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]});
        let why = "Container c for pod ns/p failed with exit code 42 matching FailJob rule at index 0".to_owned();
        for (rules, expected) in [
            (json!([codes("FailJob", "In", &[42])]), Meaning::FailJob(why)),
            (json!([codes("FailJob", "In", &[1]), gone.clone()]), Meaning::Ignore),
            (json!([codes("FailJob", "NotIn", &[42]), codes("Count", "In", &[42]), gone.clone()]), Meaning::Count),
            (json!([codes("FailIndex", "NotIn", &[1])]), Meaning::FailIndex),
            (
                json!([{"action": "FailJob", "onExitCodes": {"containerName": "d", "operator": "In", "values": [42]}}]),
                Meaning::Count,
            ),
            (json!([]), Meaning::Count),
        ] {
            let job = json!({"spec": {"backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": rules}}});
            assert_eq!(meaning(&job, &failed("0", 42, "0")), expected, "{rules}");
        }
    }

    #[test]
    fn an_index_fails_by_itself_and_some_successes_may_be_enough() {
        // C7.5
        let job = |status: Value| json!({"spec": {"completionMode": "Indexed", "completions": 4, "backoffLimitPerIndex": 1}, "status": status});
        let pods = [failed("1", 1, "1"), failed("2", 1, "0"), failed("9", 1, "5")];
        assert_eq!(failed_indexes(&job(json!({"failedIndexes": "3"})), &pods), Some([1, 3].into()));
        assert_eq!(failures_of(&job(json!({})), &pods, 2), 1);
        assert_eq!(failed_indexes(&json!({"spec": {"completionMode": "Indexed"}}), &pods), None);
        let policy = |rules: Value| json!({"spec": {"successPolicy": {"rules": rules}}});
        for (rules, expected) in [
            (json!([{"succeededIndexes": "0-1"}, {"succeededCount": 2}]), Some(1)),
            (json!([{"succeededIndexes": "0,2"}]), Some(0)),
            (json!([{"succeededIndexes": "0-1,3", "succeededCount": 1}]), Some(0)),
            (json!([{"succeededIndexes": "1,3", "succeededCount": 1}]), None),
        ] {
            assert_eq!(fulfilled(&policy(rules.clone()), &[0, 2].into()), expected, "{rules}");
        }
    }
}
