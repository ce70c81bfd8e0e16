//! What one probe does, and what comes of it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stoker_model::expand::expand;

use super::http::{HttpFailure, Request};
use super::reply::Reply;
use super::{Exec, ExecError, dial, grpc, http};

/// A command's output is cut here (A5.11).
const LONGEST_OUTPUT: usize = 10 << 10;
/// The user agent of probes (A5.8).
pub(super) const USER_AGENT: &str = "kube-probe/1.36";

/// What to do, with everything looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Exec {
        container_id: String,
        command: Vec<String>,
    },
    Http(Request),
    Tcp {
        host: String,
        port: u16,
    },
    Grpc {
        host: String,
        port: u16,
        service: String,
    },
    /// The spec makes no sense, for this reason.
    Invalid(String),
}

/// What came of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Success,
    /// Good enough, but somebody should know.
    Warning(String),
    Failure(String),
    /// Nothing can be said of the container.
    Unknown(String),
}

impl Action {
    /// What a probe of a container asks for.
    pub(super) fn of(probe: &Probe, container: &Container, container_id: &str, address: &str) -> Self {
        let host = |given: &Option<String>| given.clone().filter(|h| !h.is_empty()).unwrap_or(address.to_owned());
        if let Some(exec) = &probe.exec {
            let literal = |name: &str| {
                let given = container.env.iter().flatten().rev().find(|e| e.name == name && e.value_from.is_none());
                given.map(|e| e.value.as_deref().unwrap_or_default())
            };
            let command = exec.command.iter().flatten().map(|text| expand(text, literal)).collect();
            return Self::Exec { container_id: container_id.to_owned(), command };
        }
        if let Some(get) = &probe.http_get {
            return match Request::of(get, container, address, USER_AGENT) {
                Ok(request) => Self::Http(request),
                Err(message) => Self::Invalid(message),
            };
        }
        if let Some(tcp) = &probe.tcp_socket {
            return match resolve_port(&tcp.port, container) {
                Ok(port) => Self::Tcp { host: host(&tcp.host), port },
                Err(message) => Self::Invalid(message),
            };
        }
        if let Some(grpc) = &probe.grpc {
            let service = grpc.service.clone().unwrap_or_default();
            return match u16::try_from(grpc.port) {
                Ok(port) if port > 0 => Self::Grpc { host: address.to_owned(), port, service },
                _ => Self::Invalid(format!("invalid port number: {}", grpc.port)),
            };
        }
        Self::Invalid(format!("missing probe handler for container {}", container.name))
    }

    /// Does it once.
    pub(super) async fn attempt(&self, limit: Duration, runner: &dyn Exec) -> Outcome {
        match self {
            Self::Exec { container_id, command } => match runner.exec(container_id, command.clone(), limit).await {
                Ok(ended) if ended.exit_code == 0 => Outcome::Success,
                Ok(ended) => {
                    let end = ended.output.len().min(LONGEST_OUTPUT);
                    Outcome::Failure(String::from_utf8_lossy(&ended.output[..end]).into_owned())
                }
                Err(ExecError::TimedOut) => Outcome::Failure(format!(
                    "command timed out: \"{}\" timed out after {}s",
                    command.join(" "),
                    limit.as_secs()
                )),
                Err(ExecError::Failed(message)) => Outcome::Unknown(message),
            },
            Self::Http(request) => match http::probe(request, limit).await {
                Ok(reply) => judge(&reply),
                Err(HttpFailure(message)) => Outcome::Failure(message),
            },
            Self::Tcp { host, port } => match tokio::time::timeout(limit, dial::connect(host, *port)).await {
                Ok(Ok(_)) => Outcome::Success,
                Ok(Err(message)) => Outcome::Failure(message),
                Err(_) => Outcome::Failure(format!("dial tcp {}: i/o timeout", dial::join(host, *port))),
            },
            Self::Grpc { host, port, service } => match grpc::check(host, *port, service, limit).await {
                Ok(()) => Outcome::Success,
                Err(message) => Outcome::Failure(message),
            },
            Self::Invalid(message) => Outcome::Unknown(message.clone()),
        }
    }
}

fn judge(reply: &Reply) -> Outcome {
    match reply.status {
        200..300 => Outcome::Success,
        300..400 => {
            let body = String::from_utf8_lossy(&reply.body);
            Outcome::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// The number of a port that is given by number, or by its name in the container's spec.
///
/// # Errors
///
/// There is no such port; the text is for an event.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| format!("port {name} not found"))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

#[cfg(test)]
#[path = "action/tests.rs"]
mod tests;
