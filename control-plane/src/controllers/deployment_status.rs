//! The status of a Deployment, as a pure function of its sets and the time (C7.1).

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::rollout::{Goal, Set};
use crate::clock::seconds_text;
use crate::resources::tree::{items, text};

/// A condition of that type.
pub(super) fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    items(status, "conditions").find(|condition| condition["type"] == kind)
}

/// Sets a condition. Same status and reason: nothing changes. The transition time moves only with the status.
pub(super) fn set_condition(status: &mut Value, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let before = condition(status, kind).cloned();
    if before.as_ref().is_some_and(|b| b["status"] == value && b["reason"] == reason) {
        return;
    }
    replace_condition(status, kind, value, reason, message, now, before.as_ref());
}

fn replace_condition(
    status: &mut Value,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
    before: Option<&Value>,
) {
    let now = json!(seconds_text(now));
    let same = before.filter(|b| b["status"] == value);
    let transition = same.map_or_else(|| now.clone(), |b| b["lastTransitionTime"].clone());
    remove_condition(status, kind);
    let condition = json!({
        "type": kind, "status": value, "reason": reason, "message": message,
        "lastUpdateTime": now, "lastTransitionTime": transition,
    });
    match status["conditions"].as_array_mut() {
        Some(conditions) => conditions.push(condition),
        None => status["conditions"] = json!([condition]),
    }
}

/// Removes a condition.
pub(super) fn remove_condition(status: &mut Value, kind: &str) {
    if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        conditions.retain(|condition| condition["type"] != kind);
    }
}

/// The status and when to look again for the progress deadline.
pub(super) struct Outcome {
    pub(super) status: Value,
    pub(super) again: Option<Duration>,
}

/// What is known besides the deployment itself.
pub(super) struct Seen<'a> {
    pub(super) new: Option<&'a Set>,
    pub(super) olds: &'a [Set],
    /// Condition ReplicaFailure of the new set, or of any.
    pub(super) failure: Option<Value>,
}

/// Counts and the condition Available; all other conditions as they were.
pub(super) fn counts(deployment: &Value, goal: Goal, seen: &Seen<'_>, now: Timestamp) -> Value {
    let all = || seen.olds.iter().chain(seen.new);
    let sum = |of: fn(&Set) -> i64| all().map(of).sum::<i64>();
    let available = sum(|set| set.available);
    let mut status = json!({"observedGeneration": deployment["metadata"]["generation"]});
    let mut put = |key: &str, count: i64| {
        // As Go writes it: a zero is left out.
        if count != 0 {
            status[key] = json!(count);
        }
    };
    put("replicas", sum(|set| set.actual));
    put("updatedReplicas", seen.new.map_or(0, |set| set.actual));
    put("readyReplicas", sum(|set| set.ready));
    put("availableReplicas", available);
    put("unavailableReplicas", (sum(|set| set.size) - available).max(0));
    for key in ["collisionCount", "conditions", "terminatingReplicas"] {
        if let Some(value) = deployment["status"].get(key).filter(|value| !value.is_null()) {
            status[key] = value.clone();
        }
    }
    if available >= goal.min_available() {
        let message = "Deployment has minimum availability.";
        set_condition(&mut status, "Available", "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.";
        set_condition(&mut status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

/// Whether every pod is new, there and available.
pub(super) fn is_complete(deployment: &Value, goal: Goal, status: &Value) -> bool {
    let count = |key: &str| status[key].as_i64().unwrap_or_default();
    count("updatedReplicas") == goal.replicas
        && count("replicas") == goal.replicas
        && count("availableReplicas") == goal.replicas
        && status["observedGeneration"].as_i64() >= deployment["metadata"]["generation"].as_i64()
}

/// The status of a deployment that is rolling out or done.
pub(super) fn of_rollout(deployment: &Value, goal: Goal, seen: &Seen<'_>, now: Timestamp) -> Outcome {
    let mut status = counts(deployment, goal, seen, now);
    let deadline = deployment["spec"]["progressDeadlineSeconds"].as_i64().filter(|d| *d != i64::from(i32::MAX));
    let Some(deadline) = deadline else {
        remove_condition(&mut status, "Progressing");
        set_failure(&mut status, seen, now);
        return Outcome { status, again: None };
    };
    let before = condition(&status, "Progressing").cloned();
    let count = |key: &str| status[key].as_i64().unwrap_or_default();
    let done_before = before.as_ref().is_some_and(|b| b["reason"] == "NewReplicaSetAvailable")
        && count("replicas") == count("updatedReplicas");
    if !done_before {
        let about = match seen.new {
            Some(set) => format!("ReplicaSet {:?}", set.name),
            None => format!("Deployment {:?}", text(&deployment["metadata"], "name")),
        };
        if is_complete(deployment, goal, &status) {
            let message = format!("{about} has successfully progressed.");
            set_condition(&mut status, "Progressing", "True", "NewReplicaSetAvailable", &message, now);
        } else if has_progressed(&deployment["status"], &status) {
            // The update time moves with every step: it is what the deadline counts from.
            let message = format!("{about} is progressing.");
            let kind = "Progressing";
            replace_condition(&mut status, kind, "True", "ReplicaSetUpdated", &message, now, before.as_ref());
        } else if before.as_ref().is_some_and(|b| has_timed_out(b, deadline, now)) {
            let message = format!("{about} has timed out progressing.");
            set_condition(&mut status, "Progressing", "False", "ProgressDeadlineExceeded", &message, now);
        }
    }
    set_failure(&mut status, seen, now);
    let again = until_deadline(deployment, goal, &status, deadline, now);
    Outcome { status, again }
}

fn set_failure(status: &mut Value, seen: &Seen<'_>, now: Timestamp) {
    match &seen.failure {
        Some(failure) => {
            let (value, reason) = (text(failure, "status"), text(failure, "reason"));
            set_condition(status, "ReplicaFailure", value, reason, text(failure, "message"), now);
        }
        None => remove_condition(status, "ReplicaFailure"),
    }
}

fn has_progressed(before: &Value, after: &Value) -> bool {
    let count = |status: &Value, key: &str| status[key].as_i64().unwrap_or_default();
    let old_ones = |status: &Value| count(status, "replicas") - count(status, "updatedReplicas");
    count(after, "updatedReplicas") > count(before, "updatedReplicas")
        || old_ones(after) < old_ones(before)
        || count(after, "readyReplicas") > count(before, "readyReplicas")
        || count(after, "availableReplicas") > count(before, "availableReplicas")
}

fn updated_at(condition: &Value) -> Option<i64> {
    text(condition, "lastUpdateTime").parse::<Timestamp>().ok().map(Timestamp::as_second)
}

fn has_timed_out(before: &Value, deadline: i64, now: Timestamp) -> bool {
    match text(before, "reason") {
        "NewReplicaSetAvailable" | "DeploymentPaused" => false,
        "ProgressDeadlineExceeded" => true,
        _ => updated_at(before).is_some_and(|at| at + deadline <= now.as_second()),
    }
}

fn until_deadline(deployment: &Value, goal: Goal, status: &Value, deadline: i64, now: Timestamp) -> Option<Duration> {
    let condition = condition(status, "Progressing")?;
    let settled = matches!(text(condition, "reason"), "NewReplicaSetAvailable" | "ProgressDeadlineExceeded");
    if settled || is_complete(deployment, goal, status) {
        return None;
    }
    let left = updated_at(condition)? + deadline - now.as_second();
    // One second more, since times are written in whole ones.
    Some(Duration::from_secs(u64::try_from(left.max(0)).unwrap_or_default() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn deployment(status: Value) -> Value {
        json!({"metadata": {"name": "web", "generation": 1}, "spec": {"replicas": 2, "progressDeadlineSeconds": 10},
               "status": status})
    }

    fn set(size: i64, available: i64) -> Set {
        Set { name: "web-1".into(), size, actual: size, ready: available, available, ..Set::default() }
    }

    fn roll(status: Value, set: &Set, now: i64) -> Outcome {
        let deployment = deployment(status);
        let seen = Seen { new: Some(set), olds: &[], failure: None };
        of_rollout(&deployment, Goal::of(&deployment), &seen, at(now))
    }

    #[track_caller]
    fn check(outcome: &Outcome, kind: &str, expected: (&str, &str, &str)) {
        let condition = condition(&outcome.status, kind).expect("the condition");
        assert_eq!((text(condition, "status"), text(condition, "reason"), text(condition, "message")), expected);
    }

    #[test]
    fn a_rollout_progresses_and_succeeds() {
        let first = roll(json!({}), &set(2, 0), 0);
        check(&first, "Progressing", ("True", "ReplicaSetUpdated", "ReplicaSet \"web-1\" is progressing."));
        let unavailable = "Deployment does not have minimum availability.";
        check(&first, "Available", ("False", "MinimumReplicasUnavailable", unavailable));
        assert_eq!(first.again, Some(Duration::from_secs(11)));
        let half = roll(first.status, &set(2, 1), 5);
        assert_eq!(half.again, Some(Duration::from_secs(11)));
        let done = roll(half.status, &set(2, 2), 6);
        let message = "ReplicaSet \"web-1\" has successfully progressed.";
        check(&done, "Progressing", ("True", "NewReplicaSetAvailable", message));
        check(&done, "Available", ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."));
        assert_eq!(done.again, None);
        assert_eq!(roll(done.status.clone(), &set(2, 2), 600).status, done.status, "nothing changes by itself");
    }

    #[test]
    fn a_rollout_that_stands_still_times_out() {
        let first = roll(json!({}), &set(2, 0), 0);
        let waiting = roll(first.status.clone(), &set(2, 0), 9);
        assert_eq!(waiting.status, first.status);
        let late = roll(first.status, &set(2, 0), 10);
        let message = "ReplicaSet \"web-1\" has timed out progressing.";
        check(&late, "Progressing", ("False", "ProgressDeadlineExceeded", message));
    }

    #[test]
    fn failures_of_the_set_show_and_go() {
        let deployment = deployment(json!({}));
        let failure = json!({"status": "True", "reason": "FailedCreate", "message": "quota"});
        let set = set(0, 0);
        let seen = Seen { new: Some(&set), olds: &[], failure: Some(failure) };
        let outcome = of_rollout(&deployment, Goal::of(&deployment), &seen, at(0));
        check(&outcome, "ReplicaFailure", ("True", "FailedCreate", "quota"));
        let gone = roll(outcome.status, &set, 1);
        assert_eq!(condition(&gone.status, "ReplicaFailure"), None);
    }
}
