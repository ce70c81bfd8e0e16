//! `/statusz` and `/flagz`: what the agent is and how it was configured, for people, or for programs that ask for JSON or YAML (A18.15).

use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::reply::{self, Reply};
use crate::clock::Now;

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is \
                       for debugging purposes only.";
const PATHS: [&str; 9] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/metrics",
    "/metrics/cadvisor",
    "/metrics/probes",
    "/metrics/resource",
    "/pods",
    "/stats/summary",
];
/// The release whose API is served.
const EMULATED: &str = "1.36";

/// In which form an answer is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Text,
    Json,
    Yaml,
    /// None that we have.
    Other,
}

impl Form {
    /// The first of the wanted forms that we have. Structured ones must name the type, since more versions of it may come.
    fn wanted(headers: &HeaderMap, kind: &str) -> Self {
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        if accept.trim().is_empty() {
            return Self::Text;
        }
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: Vec<&str> = parts.collect();
            let named = parameters.contains(&"g=config.k8s.io")
                && parameters.contains(&"v=v1beta1")
                && parameters.iter().any(|parameter| parameter.strip_prefix("as=") == Some(kind));
            match media {
                "text/plain" | "text/*" | "*/*" => return Self::Text,
                "application/json" if named => return Self::Json,
                "application/yaml" if named => return Self::Yaml,
                _ => {}
            }
        }
        Self::Other
    }

    fn answer(self, text: impl FnOnce() -> String, document: impl FnOnce() -> Value) -> Reply {
        match self {
            Self::Text => reply::text(StatusCode::OK, text()),
            Self::Json => reply::json(document().to_string().into_bytes()),
            Self::Yaml => reply::yaml(serde_yaml_ng::to_string(&document()).unwrap_or_default()),
            Self::Other => reply::text(
                StatusCode::NOT_ACCEPTABLE,
                "406: only text/plain, and application/json or application/yaml with g=config.k8s.io;v=v1beta1;as=KIND",
            ),
        }
    }
}

/// What runs here, and since when.
pub(super) fn statusz(started: Now, now: Now, headers: &HeaderMap) -> Reply {
    let up = now.monotonic.saturating_sub(started.monotonic).as_secs();
    let binary = format!("stoker {}", env!("CARGO_PKG_VERSION"));
    let text = || {
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        format!(
            "\nkubelet statusz\n{WARNING}\n\nStarted: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: {binary}\n\
             Emulation version: {EMULATED}\nPaths: {}\n",
            started.wall,
            PATHS.join(" ")
        )
    };
    let document = || {
        json!({
            "kind": "Statusz", "apiVersion": "config.k8s.io/v1beta1", "metadata": { "name": "kubelet" },
            "startTime": started.wall.to_string(), "uptimeSeconds": up, "binaryVersion": binary,
            "emulationVersion": EMULATED, "paths": PATHS,
        })
    };
    Form::wanted(headers, "Statusz").answer(text, document)
}

/// What was set on the command line or in the file: the configuration that follows from both.
pub(super) fn flagz(configuration: &Value, headers: &HeaderMap) -> Reply {
    let fields = || configuration.as_object().into_iter().flatten();
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = || {
        let lines: String = fields().map(|(name, value)| format!("{name}={}\n", shown(value))).collect();
        format!("\nkubelet flagz\n{WARNING}\n\n{lines}")
    };
    let document = || {
        let flags: serde_json::Map<_, _> = fields().map(|(name, value)| (name.clone(), shown(value).into())).collect();
        json!({
            "kind": "Flagz", "apiVersion": "config.k8s.io/v1beta1", "metadata": { "name": "kubelet" }, "flags": flags,
        })
    };
    Form::wanted(headers, "Flagz").answer(text, document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_as_asked() {
        // A18.15
        let form = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a value"));
            Form::wanted(&headers, "Statusz")
        };
        assert_eq!(Form::wanted(&HeaderMap::new(), "Statusz"), Form::Text);
        for (accept, expected) in [
            ("", Form::Text),
            ("*/*", Form::Text),
            ("text/plain", Form::Text),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", Form::Json),
            ("application/yaml; g=config.k8s.io; v=v1beta1; as=Statusz", Form::Yaml),
            ("application/json", Form::Other),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", Form::Other),
            ("application/json, */*", Form::Text),
            ("image/png", Form::Other),
        ] {
            assert_eq!(form(accept), expected, "{accept}");
        }
    }
}
