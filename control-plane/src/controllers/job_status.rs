//! What a Job's pods mean for it: counts, conditions, what to do next. Pure: pods and time in, status and decision out (C7.5).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::deployment_status::{condition, remove_condition};
use super::job_policy::{self, Meaning};
use super::owner::is_being_deleted;
use crate::clock::seconds_text;
use crate::resources::tree::{items, text};

/// Holds a pod until it was counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label: the index of a pod of an Indexed job.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// After the first failure; each further one doubles it.
const FIRST_PAUSE_SECONDS: i64 = 10;
const LONGEST_PAUSE_SECONDS: i64 = 600;
/// Named in the status at a time.
const UNCOUNTED: usize = 500;

/// What to do with pods.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Make or delete so many.
    Run { missing: usize, excess: usize },
    /// Delete all that run.
    Stop,
}

/// A job as it is.
#[derive(Debug)]
pub(super) struct View {
    pub(super) status: Value,
    pub(super) decision: Decision,
    /// UIDs of pods whose end the status names.
    pub(super) uncounted: Vec<String>,
    pub(super) again: Option<Duration>,
    pub(super) events: Vec<(&'static str, &'static str)>,
}

pub(super) fn is_tracked(pod: &Value) -> bool {
    items(&pod["metadata"], "finalizers").any(|name| name == FINALIZER)
}

/// Neither at its end nor on its way out.
pub(super) fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_being_deleted(pod)
}

fn is_finished(pod: &Value) -> bool {
    matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed")
}

/// When the job ended for good.
pub(super) fn finished_at(job: &Value) -> Option<Timestamp> {
    let ended = |kind| condition(&job["status"], kind).filter(|condition| condition["status"] == "True");
    let condition = ended("Complete").or_else(|| ended("Failed"))?;
    Some(text(condition, "lastTransitionTime").parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

pub(super) fn number(value: &Value) -> usize {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or_default()
}

pub(super) fn is_indexed(job: &Value) -> bool {
    job["spec"]["completionMode"] == "Indexed"
}

pub(super) fn index_of(pod: &Value) -> Option<usize> {
    pod["metadata"]["annotations"][INDEX].as_str()?.parse().ok()
}

/// `0-2,5` as numbers.
pub(super) fn parse_indexes(text: &str) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            found.extend(first..=last);
        }
    }
    found
}

/// Numbers as `0-2,5`; two neighbours are `0,1`.
fn show_indexes(indexes: &BTreeSet<usize>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = indexes.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while rest.next_if_eq(&(last + 1)).is_some() {
            last += 1;
        }
        parts.push(match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
    }
    parts.join(",")
}

/// The lowest indexes that neither run nor have succeeded; `None` for a job without indexes.
pub(super) fn free_indexes(job: &Value, pods: &[Arc<Value>], count: usize) -> Option<Vec<usize>> {
    if !is_indexed(job) {
        return None;
    }
    let mut taken = parse_indexes(text(&job["status"], "completedIndexes"));
    let holds = |pod: &&Arc<Value>| !is_finished(pod) || text(&pod["status"], "phase") == "Succeeded";
    taken.extend(pods.iter().filter(holds).filter_map(|pod| index_of(pod)));
    taken.extend(job_policy::failed_indexes(job, pods).into_iter().flatten());
    Some((0..number(&job["spec"]["completions"])).filter(|index| !taken.contains(index)).take(count).collect())
}

/// Pods to delete first: those that are least on their way.
pub(super) fn first_to_go(pods: &[Arc<Value>], count: usize) -> Vec<Arc<Value>> {
    let mut active: Vec<&Arc<Value>> = pods.iter().filter(|pod| is_active(pod)).collect();
    let is_ready = |pod: &Value| condition(&pod["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
    active.sort_by_key(|pod| {
        let started = text(&pod["status"], "phase") == "Running";
        (started, is_ready(pod), std::cmp::Reverse(text(&pod["metadata"], "creationTimestamp").to_owned()))
    });
    active.into_iter().take(count).cloned().collect()
}

pub(super) fn look(job: &Value, pods: &[Arc<Value>], now: Timestamp) -> View {
    let spec = &job["spec"];
    let mut status = if job["status"].is_object() { job["status"].clone() } else { json!({}) };
    let mut events = Vec::new();
    let suspended = spec["suspend"] == true;
    let uncounted = count(&mut status, job, pods);
    let given_up = job_policy::failed_indexes(job, pods);
    if let Some(indexes) = &given_up {
        status["failedIndexes"] = json!(show_indexes(indexes));
    }
    let given_up = given_up.map_or(0, |indexes| indexes.len());
    if status["startTime"].is_null() && !suspended {
        status["startTime"] = json!(seconds_text(now));
    }
    let active = pods.iter().filter(|pod| is_active(pod)).count();
    let terminating = pods.iter().filter(|pod| is_being_deleted(pod) && !is_finished(pod)).count();
    let is_ready = |pod: &Value| condition(&pod["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
    let ready = pods.iter().filter(|pod| is_active(pod) && is_ready(pod)).count();
    let waiting = |kind: &str| items(&status["uncountedTerminatedPods"], kind).count();
    let (succeeded, failed) =
        (number(&status["succeeded"]) + waiting("succeeded"), number(&status["failed"]) + waiting("failed"));
    for (key, value) in
        [("active", active), ("failed", number(&status["failed"])), ("succeeded", number(&status["succeeded"]))]
    {
        set_count(&mut status, key, value);
    }
    status["ready"] = json!(ready);
    status["terminating"] = json!(terminating);

    let target = target(&status).or_else(|| verdict(job, pods, &status, (succeeded, failed, active), now));
    let mut again = deadline(job, &status, now);
    let decision = if let Some((kind, reason, message)) = target {
        let (first, last) =
            if kind == "Complete" { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
        set(&mut status, first, "True", &reason, &message, now);
        // Only when nothing runs any more and everything was counted, nobody finds the job at its end with pods that go on.
        if active == 0 && terminating == 0 && uncounted.is_empty() {
            set(&mut status, last, "True", &reason, &message, now);
            if last == "Complete" {
                status["completionTime"] = json!(seconds_text(now));
                events.push(("Completed", "Job completed"));
            }
        }
        Decision::Stop
    } else if suspended {
        if condition(&status, "Suspended").is_none_or(|it| it["status"] != "True") {
            events.push(("Suspended", "Job suspended"));
        }
        set(&mut status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        if let Some(fields) = status.as_object_mut() {
            fields.remove("startTime");
        }
        Decision::Stop
    } else {
        if condition(&status, "Suspended").is_some_and(|it| it["status"] == "True") {
            set(&mut status, "Suspended", "False", "JobResumed", "Job resumed", now);
            events.push(("Resumed", "Job resumed"));
        }
        let parallel = number(&spec["parallelism"]);
        let wanted = match spec["completions"].as_u64() {
            Some(_) => parallel.min(number(&spec["completions"]).saturating_sub(succeeded + given_up)),
            None if succeeded > 0 => active.min(parallel),
            None => parallel,
        };
        let held = if spec["podReplacementPolicy"] == "Failed" { active + terminating } else { active };
        let mut missing = wanted.saturating_sub(held);
        let pause = pause(pods, now);
        if missing > 0 && pause > 0 {
            missing = 0;
            let pause = Duration::from_secs(pause.unsigned_abs());
            again = Some(again.map_or(pause, |again| again.min(pause)));
        }
        Decision::Run { missing, excess: active.saturating_sub(wanted) }
    };
    View { status, decision, uncounted, again, events }
}

/// Moves ended pods into the counts: first their UIDs are named, and when their finalizers are gone they are numbers.
fn count(status: &mut Value, job: &Value, pods: &[Arc<Value>]) -> Vec<String> {
    let mut named = Vec::new();
    let mut indexes = parse_indexes(text(status, "completedIndexes"));
    let mut lists = json!({});
    for (kind, phase) in [("succeeded", "Succeeded"), ("failed", "Failed")] {
        let still = |uid: &str| pods.iter().any(|pod| text(&pod["metadata"], "uid") == uid && is_tracked(pod));
        let before: Vec<String> =
            items(&status["uncountedTerminatedPods"], kind).filter_map(Value::as_str).map(str::to_owned).collect();
        let (mut waiting, done): (Vec<String>, Vec<String>) = before.into_iter().partition(|uid| still(uid));
        let total = number(&status[kind]) + done.len();
        if total > 0 {
            status[kind] = json!(total);
        }
        let is_new = |pod: &&Arc<Value>| {
            is_tracked(pod)
                && (text(&pod["status"], "phase") == phase || (phase == "Failed" && !is_finished(pod) && is_lost(pod)))
        };
        for pod in pods.iter().filter(is_new) {
            let uid = text(&pod["metadata"], "uid");
            if phase == "Failed" && is_finished(pod) && job_policy::meaning(job, pod) == Meaning::Ignore {
                // Let go without a count.
                named.push(uid.to_owned());
                continue;
            }
            if waiting.len() < UNCOUNTED && !waiting.iter().any(|known| known == uid) {
                waiting.push(uid.to_owned());
                if phase == "Succeeded"
                    && let Some(index) = index_of(pod)
                {
                    // Two pods of one index that both succeed are one success.
                    indexes.insert(index);
                }
            }
        }
        if !waiting.is_empty() {
            lists[kind] = json!(waiting);
        }
        named.extend(waiting);
    }
    if is_indexed(job) {
        indexes.retain(|index| *index < number(&job["spec"]["completions"]));
        if !indexes.is_empty() {
            status["completedIndexes"] = json!(show_indexes(&indexes));
        }
        let waiting = items(&lists, "succeeded").count();
        if !indexes.is_empty() {
            status["succeeded"] = json!(indexes.len().saturating_sub(waiting));
        }
    }
    status["uncountedTerminatedPods"] = lists;
    named
}

/// A pod that was deleted before it ran on any node will never end by itself.
fn is_lost(pod: &Value) -> bool {
    is_being_deleted(pod) && text(&pod["spec"], "nodeName").is_empty()
}

/// What was decided already.
fn target(status: &Value) -> Option<(&'static str, String, String)> {
    let holds = |kind| condition(status, kind).filter(|it| it["status"] == "True");
    let said = |kind, it: &Value| (kind, text(it, "reason").to_owned(), text(it, "message").to_owned());
    holds("SuccessCriteriaMet")
        .map(|it| said("Complete", it))
        .or_else(|| holds("FailureTarget").map(|it| said("Failed", it)))
}

fn verdict(
    job: &Value,
    pods: &[Arc<Value>],
    status: &Value,
    (succeeded, failed, active): (usize, usize, usize),
    now: Timestamp,
) -> Option<(&'static str, String, String)> {
    let spec = &job["spec"];
    let say = |kind, reason: &str, message: &str| Some((kind, reason.to_owned(), message.to_owned()));
    if let Some(why) = job_policy::fails_job(job, pods) {
        return say("Failed", "PodFailurePolicy", &why);
    }
    let done = parse_indexes(text(status, "completedIndexes"));
    if let Some(at) = job_policy::fulfilled(job, &done).filter(|_| is_indexed(job)) {
        return say("Complete", "SuccessPolicy", &format!("Matched rules at index {at}"));
    }
    let given_up = parse_indexes(text(status, "failedIndexes")).len();
    if spec["maxFailedIndexes"].as_u64().is_some() && given_up > number(&spec["maxFailedIndexes"]) {
        let why = "Job has exceeded the specified maximal number of failed indexes";
        return say("Failed", "MaxFailedIndexesExceeded", why);
    }
    if given_up > 0 && given_up + succeeded >= number(&spec["completions"]) {
        return say("Failed", "FailedIndexes", "Job has failed indexes");
    }
    let restarts: u64 = pods
        .iter()
        .filter(|pod| is_active(pod) && pod["spec"]["restartPolicy"] == "OnFailure")
        .flat_map(|pod| ["containerStatuses", "initContainerStatuses"].map(|list| (pod, list)))
        .flat_map(|(pod, list)| items(&pod["status"], list))
        .filter_map(|status| status["restartCount"].as_u64())
        .sum();
    let limit = number(&spec["backoffLimit"]);
    let restarts = usize::try_from(restarts).unwrap_or(usize::MAX);
    if failed > limit || (restarts > 0 && restarts >= limit.max(1)) {
        return say("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if spec["suspend"] != true && deadline_left(job, status, now).is_some_and(|left| left <= 0) {
        return say("Failed", "DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let complete = match spec["completions"].as_u64() {
        Some(_) => succeeded >= number(&spec["completions"]),
        None => succeeded > 0 && active == 0,
    };
    if complete && spec["suspend"] != true {
        return say("Complete", "CompletionsReached", "Reached expected number of succeeded pods");
    }
    None
}

fn deadline_left(job: &Value, status: &Value, now: Timestamp) -> Option<i64> {
    let limit = job["spec"]["activeDeadlineSeconds"].as_i64()?;
    let started: Timestamp = text(status, "startTime").parse().ok()?;
    Some(started.as_second() + limit - now.as_second())
}

fn deadline(job: &Value, status: &Value, now: Timestamp) -> Option<Duration> {
    deadline_left(job, status, now).filter(|left| *left > 0).map(|left| Duration::from_secs(left.unsigned_abs()))
}

/// Seconds to wait for the next pod: twice as long for each failure since the last success.
fn pause(pods: &[Arc<Value>], now: Timestamp) -> i64 {
    let ended = |pod: &Value| -> Option<i64> {
        let times = items(&pod["status"], "containerStatuses").filter_map(|status| {
            let at: Timestamp = text(&status["state"]["terminated"], "finishedAt").parse().ok()?;
            Some(at.as_second())
        });
        times.max().or_else(|| Some(text(&pod["metadata"], "creationTimestamp").parse::<Timestamp>().ok()?.as_second()))
    };
    let of = |phase: &str| -> Vec<i64> {
        pods.iter().filter(|pod| text(&pod["status"], "phase") == phase).filter_map(|pod| ended(pod)).collect()
    };
    let success = of("Succeeded").into_iter().max().unwrap_or(i64::MIN);
    let failures: Vec<i64> = of("Failed").into_iter().filter(|at| *at > success).collect();
    let Some(last) = failures.iter().max() else { return 0 };
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
    last + (FIRST_PAUSE_SECONDS << doublings).min(LONGEST_PAUSE_SECONDS) - now.as_second()
}

fn set_count(status: &mut Value, key: &str, value: usize) {
    if value > 0 {
        status[key] = json!(value);
    } else if let Some(fields) = status.as_object_mut() {
        fields.remove(key);
    }
}

/// Job conditions tell when they were looked at, not when they were updated.
fn set(status: &mut Value, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    if condition(status, kind).is_some_and(|it| it["status"] == value && it["reason"] == reason) {
        return;
    }
    remove_condition(status, kind);
    let now = seconds_text(now);
    let new = json!({"type": kind, "status": value, "reason": reason, "message": message,
        "lastProbeTime": now, "lastTransitionTime": now});
    match status["conditions"].as_array_mut() {
        Some(conditions) => conditions.push(new),
        None => status["conditions"] = json!([new]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().unwrap()
    }

    fn job(spec: Value, status: Value) -> Value {
        let mut whole = json!({"parallelism": 2, "completions": 3, "backoffLimit": 1, "completionMode": "NonIndexed"});
        json_patch::merge(&mut whole, &spec);
        json!({"spec": whole, "status": status})
    }

    fn pod(uid: &str, phase: &str, tracked: bool) -> Arc<Value> {
        let finalizers = if tracked { json!([FINALIZER]) } else { json!([]) };
        Arc::new(json!({"metadata": {"uid": uid, "finalizers": finalizers, "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {INDEX: uid}}, "spec": {"nodeName": "n"}, "status": {"phase": phase}}))
    }

    #[test]
    fn pods_are_counted_once_and_by_name_first() {
        // C7.5
        let pods = [pod("a", "Succeeded", true), pod("b", "Running", true)];
        let first = look(&job(json!({}), json!({})), &pods, now());
        assert_eq!(first.uncounted, ["a"]);
        assert_eq!(first.status["uncountedTerminatedPods"], json!({"succeeded": ["a"]}));
        assert!(first.status.get("succeeded").is_none());
        assert_eq!(first.decision, Decision::Run { missing: 1, excess: 0 });
        // The finalizer is gone: now it is a number, also when the pod itself is gone.
        for pods in [vec![pod("a", "Succeeded", false), pod("b", "Running", true)], vec![pod("b", "Running", true)]] {
            let second = look(&job(json!({}), first.status.clone()), &pods, now());
            assert_eq!((&second.status["succeeded"], second.uncounted.len()), (&json!(1), 0));
        }
    }

    #[test]
    fn the_end_is_told_when_nothing_runs() {
        let status = json!({"succeeded": 3, "startTime": "2026-01-01T00:00:00Z"});
        let held = look(&job(json!({}), status.clone()), &[pod("x", "Running", true)], now());
        let has = |view: &View, kind: &str| condition(&view.status, kind).is_some();
        assert!(has(&held, "SuccessCriteriaMet") && !has(&held, "Complete"));
        assert_eq!(held.decision, Decision::Stop);
        let done = look(&job(json!({}), status), &[], now());
        assert!(has(&done, "Complete") && done.status["completionTime"].is_string());
        let failed = look(&job(json!({}), json!({"failed": 2})), &[], now());
        assert_eq!(condition(&failed.status, "Failed").unwrap()["reason"], "BackoffLimitExceeded");
        let late =
            look(&job(json!({"activeDeadlineSeconds": 60}), json!({"startTime": "2026-01-01T00:00:00Z"})), &[], now());
        assert_eq!(condition(&late.status, "Failed").unwrap()["reason"], "DeadlineExceeded");
    }

    #[test]
    fn failures_are_waited_for_and_suspension_stops() {
        let failed = Arc::new(json!({"metadata": {"uid": "f"}, "status": {"phase": "Failed",
            "containerStatuses": [{"state": {"terminated": {"finishedAt": "2026-01-01T00:00:55Z"}}}]}}));
        let view = look(&job(json!({"backoffLimit": 6}), json!({"failed": 1})), &[failed], now());
        assert_eq!(
            (view.decision, view.again),
            (Decision::Run { missing: 0, excess: 0 }, Some(Duration::from_secs(5)))
        );
        let view = look(&job(json!({"suspend": true}), json!({})), &[pod("b", "Running", true)], now());
        assert_eq!((view.decision, &view.events[..]), (Decision::Stop, &[("Suspended", "Job suspended")][..]));
        assert!(view.status["startTime"].is_null());
    }

    #[test]
    fn indexes_are_ranges() {
        assert_eq!(show_indexes(&parse_indexes("0-2,5,7-8")), "0-2,5,7,8");
        let indexed = job(json!({"completionMode": "Indexed"}), json!({"completedIndexes": "0"}));
        assert_eq!(free_indexes(&indexed, &[pod("1", "Running", true)], 5), Some(vec![2]));
        let view = look(&indexed, &[pod("2", "Succeeded", true)], now());
        assert_eq!(view.status["completedIndexes"], "0,2");
        assert_eq!((&view.status["succeeded"], view.decision), (&json!(1), Decision::Run { missing: 1, excess: 0 }));
    }
}
