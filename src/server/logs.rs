//! A log request: its options as kubelet reads them, and which instance of the container it means.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use stoker_model::pod::LocalPod;

use super::query::Query;
use crate::runtime::logs::LogOptions;

/// What a query asks for.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct LogRequest {
    pub(super) options: LogOptions,
    /// The instance before.
    pub(super) previous: bool,
}

/// Why there is no log, in kubelet's words (A20.7, A20.8).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoLog {
    #[error("{{\"message\": \"Unable to decode query.\"}}")]
    Undecodable,
    #[error("{{\"message\": \"Invalid request.\"}}")]
    Invalid,
    #[error("container {container:?} not found in pod {pod:?}")]
    UnknownContainer { container: String, pod: String },
    #[error("container {container:?} in pod {pod:?} is not available")]
    NotAvailable { container: String, pod: String },
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious { container: String, pod: String },
    #[error("container {container:?} in pod {pod:?} is terminated")]
    Terminated { container: String, pod: String },
    #[error("container {container:?} in pod {pod:?} is waiting to start: {why}")]
    Waiting { container: String, pod: String, why: String },
    #[error("container {container:?} in pod {pod:?} is waiting to start - no logs yet")]
    NotYet { container: String, pod: String },
}

impl NoLog {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UnknownContainer { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl LogRequest {
    /// Reads a query. The first of several values counts, and unknown names are ignored.
    pub(super) fn parse(query: &str, now: Timestamp) -> Result<Self, NoLog> {
        let parameters = Query::parse(query).ok_or(NoLog::Undecodable)?;
        let first = |name| parameters.first(name);
        let flag = |name| first(name).is_some_and(|value| !matches!(value.to_lowercase().as_str(), "false" | "0"));
        let number = |name| match first(name) {
            None | Some("") => Ok(None),
            Some(value) => value.parse::<i64>().map(Some).map_err(|_| NoLog::Undecodable),
        };
        // `tail` is an old name of `tailLines`, and stronger.
        let tail_lines = match first("tail") {
            Some("all") => None,
            Some(tail) if !tail.is_empty() => Some(tail.parse().map_err(|_| NoLog::Undecodable)?),
            _ => number("tailLines")?,
        };
        let limit_bytes = number("limitBytes")?;
        let since_seconds = number("sinceSeconds")?;
        let since_time: Option<Timestamp> = match first("sinceTime") {
            None | Some("" | "null") => None,
            Some(time) => Some(time.parse().map_err(|_| NoLog::Undecodable)?),
        };
        let below = |value: Option<i64>, least: i64| value.is_some_and(|value| value < least);
        let both_since = since_seconds.is_some() && since_time.is_some();
        // Which stream is an alpha feature's question.
        let of_stream = first("stream").is_some();
        if of_stream || below(tail_lines, 0) || below(limit_bytes, 1) || below(since_seconds, 1) || both_since {
            return Err(NoLog::Invalid);
        }
        let ago = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        let options = LogOptions {
            follow: flag("follow"),
            tail_lines: tail_lines.and_then(|lines| lines.try_into().ok()),
            since: since_time.or_else(|| since_seconds.map(ago)),
            timestamps: flag("timestamps"),
            limit_bytes: limit_bytes.and_then(|bytes| bytes.try_into().ok()),
        };
        Ok(Self { options, previous: flag("previous") })
    }
}

/// The ID, without the runtime's name, of the instance whose log is wanted.
///
/// A container that waits to be started again shows its last instance (A20.8).
pub(super) fn choose_container(pod: &LocalPod, container: &str, previous: bool) -> Result<String, NoLog> {
    let pod_name = pod.pod().metadata.name.clone().unwrap_or_default();
    let names = || (container.to_owned(), pod_name.clone());
    if !has_container(pod.pod(), container) {
        let (container, pod) = names();
        return Err(NoLog::UnknownContainer { container, pod });
    }
    let Some(status) = status_of(pod, container) else {
        let (container, pod) = names();
        return Err(NoLog::NotAvailable { container, pod });
    };
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last_id = last.and_then(|last| id_of(last.container_id.as_ref()));
    let state = status.state.as_ref();
    let terminated = state.and_then(|state| state.terminated.as_ref());
    let (container, pod) = names();
    if previous {
        return last_id.ok_or(NoLog::NoPrevious { container, pod });
    }
    if state.is_some_and(|state| state.running.is_some()) {
        return id_of(status.container_id.as_ref()).ok_or(NoLog::NotYet { container, pod });
    }
    if let Some(terminated) = terminated {
        // Empty where the next instance could not even be made.
        return id_of(terminated.container_id.as_ref()).or(last_id).ok_or(NoLog::Terminated { container, pod });
    }
    if last.is_some() {
        return last_id.ok_or(NoLog::Terminated { container, pod });
    }
    let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) else {
        return Err(NoLog::NotYet { container, pod });
    };
    let why = match waiting.reason.as_deref().unwrap_or_default() {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        reason => reason,
    };
    Err(NoLog::Waiting { container, pod, why: why.to_owned() })
}

fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| container.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|container| container.name == name)
}

fn status_of<'a>(pod: &'a LocalPod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flat_map(|list| list.iter().flatten())
        .find(|status| status.name == name)
}

/// `containerd://<id>` without its beginning.
fn id_of(full: Option<&String>) -> Option<String> {
    let full = full?;
    let id = full.split_once("://").map_or(full.as_str(), |(_, id)| id);
    (!id.is_empty()).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn parse(query: &str) -> Result<LogRequest, NoLog> {
        LogRequest::parse(query, "2026-01-02T03:04:05Z".parse().unwrap())
    }

    #[test]
    fn queries_are_read_as_kubelet_does() {
        // A18.7, A20.8
        let since = |time: &str| Some(time.parse().unwrap());
        let options = LogOptions::default();
        for (query, expected) in [
            ("", options),
            ("follow=true&timestamps=1", LogOptions { follow: true, timestamps: true, ..options }),
            ("follow=false&timestamps=0&container=x", options),
            ("tailLines=0", LogOptions { tail_lines: Some(0), ..options }),
            ("tailLines=7&tail=3", LogOptions { tail_lines: Some(3), ..options }),
            ("tailLines=7&tail=all", options),
            ("limitBytes=1", LogOptions { limit_bytes: Some(1), ..options }),
            ("sinceSeconds=5", LogOptions { since: since("2026-01-02T03:04:00Z"), ..options }),
            ("sinceSeconds=9223372036854775807", LogOptions { since: Some(Timestamp::MIN), ..options }),
            (
                "sinceTime=2026-01-02T05%3A04%3A00%2B02%3A00",
                LogOptions { since: since("2026-01-02T03:04:00Z"), ..options },
            ),
            ("insecureSkipTLSVerifyBackend=true", options),
        ] {
            assert_eq!(parse(query).map(|request| request.options), Ok(expected), "{query}");
        }
        assert!(parse("previous=true").unwrap().previous);
    }

    #[test]
    fn wrong_options_are_refused() {
        // A18.7, A20.8
        for query in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-02T03%3A04%3A05Z",
            "stream=Stdout",
            "stream=All",
        ] {
            let refusal = parse(query).unwrap_err();
            assert_eq!(
                (refusal.status().as_u16(), refusal.to_string().as_str()),
                (422, r#"{"message": "Invalid request."}"#)
            );
        }
        for query in ["tailLines=many", "sinceTime=yesterday", "follow=%zz"] {
            assert_eq!(parse(query).unwrap_err().status(), 400, "{query}");
        }
    }

    fn choose(status: Value, previous: bool) -> Result<String, String> {
        let pod = json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [{ "name": "c" }, { "name": "new" }] },
            "status": { "containerStatuses": [status] },
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        choose_container(&Arc::new(pod).into(), "c", previous).map_err(|refusal| refusal.to_string())
    }

    fn status(id: &str, state: Value, last: Value) -> Value {
        json!({
            "name": "c", "containerID": id, "state": state, "lastState": last,
            "image": "", "imageID": "", "ready": false, "restartCount": 0,
        })
    }

    #[test]
    fn the_instance_and_the_refusals_are_kubelets() {
        let ended = |id: &str| json!({ "terminated": { "exitCode": 1, "containerID": id } });
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
        let running = || json!({ "running": {} });
        let now = |state: Value, last: Value| choose(status("containerd://now", state, last), false);
        let none = || json!({});
        assert_eq!(now(running(), ended("containerd://old")), Ok("now".into()));
        assert_eq!(now(ended("containerd://now"), none()), Ok("now".into()));
        // A18.7, A20.8
        assert_eq!(now(waiting("CrashLoopBackOff"), ended("containerd://old")), Ok("old".into()));
        assert_eq!(now(ended(""), ended("containerd://old")), Ok("old".into()));
        // A18.7, A20.7
        let why = |text: &str| Err(format!("container \"c\" in pod \"p\" is {text}"));
        assert_eq!(now(ended(""), none()), why("terminated"));
        assert_eq!(now(waiting("ErrImagePull"), none()), why("waiting to start: image can't be pulled"));
        assert_eq!(now(waiting("ImagePullBackOff"), none()), why("waiting to start: trying and failing to pull image"));
        assert_eq!(now(waiting("ContainerCreating"), none()), why("waiting to start: ContainerCreating"));
        assert_eq!(now(none(), none()), why("waiting to start - no logs yet"));
        // A20.6
        let previous = |last: Value| choose(status("containerd://now", running(), last), true);
        assert_eq!(previous(ended("containerd://old")), Ok("old".into()));
        assert_eq!(previous(none()), Err("previous terminated container \"c\" in pod \"p\" not found".into()));
    }

    #[test]
    fn a_container_must_be_one_of_the_pods() {
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c" }] } }))
                .unwrap();
        let pod = LocalPod::from(Arc::new(pod));
        let unknown = choose_container(&pod, "x", false).unwrap_err();
        assert_eq!(
            (unknown.status().as_u16(), unknown.to_string().as_str()),
            (404, "container \"x\" not found in pod \"p\"")
        );
        // A18.7, A20.7
        let early = choose_container(&pod, "c", false).unwrap_err();
        assert_eq!(
            (early.status().as_u16(), early.to_string().as_str()),
            (400, "container \"c\" in pod \"p\" is not available")
        );
    }
}
