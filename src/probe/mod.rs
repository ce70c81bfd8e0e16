//! Startup, liveness and readiness probes of this node's containers, on one timer (A5).
//!
//! In: [`Prober::keep`], which a pod's worker calls whenever it has looked: the containers that run now. Out: what their
//! probes say, in the same call; and a wake for the worker when that changes.
//! Not here: what follows from it. Nothing is known of the API server, nor of the runtime: commands run through [`Exec`].

mod action;
mod board;
mod counts;
mod dial;
mod grpc;
mod http;
mod http1;
mod prober;
mod reply;
mod tally;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use stoker_model::pod::PodRef;

pub use action::resolve_port;
pub use http::{HttpFailure, Request, get};
pub use prober::Prober;

/// Runs commands in containers.
#[async_trait]
pub trait Exec: Send + Sync + 'static {
    /// Runs a command in a running container, and waits for its end at most for `limit`.
    async fn exec(&self, container_id: &str, command: Vec<String>, limit: Duration) -> Result<Ended, ExecError>;
}

/// What came of a command.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Its exit code.
    pub exit_code: i32,
    /// What it wrote, to whichever stream.
    pub output: Vec<u8>,
}

/// Why nothing came of a command.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExecError {
    /// It took longer than it may.
    #[error("command timed out")]
    TimedOut,
    /// It could not be run.
    #[error("{0}")]
    Failed(String),
}

/// What there is to probe of one pod.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The pod.
    pub pod: &'a PodRef,
    /// Its primary address.
    pub address: &'a str,
    /// It is being deleted: liveness and startup no longer matter (A5.6).
    pub ending: bool,
    /// Its containers that run now.
    pub containers: &'a [Target<'a>],
}

/// One running container.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The runtime's ID: another one means that everything starts over.
    pub id: &'a str,
    /// Its spec.
    pub spec: &'a Container,
    /// Its place in the pod's spec, for events.
    pub field_path: &'a str,
    /// When it was started.
    pub running_since: Timestamp,
    /// What a former agent reported of this very container: it stays so until a probe says otherwise (A5.3).
    pub reported: Option<Verdict>,
}

/// What the probes of a container say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The startup probe passed, or there is none.
    pub started: bool,
    /// The readiness probe passed, or there is none.
    pub ready: bool,
    /// The startup or liveness probe gave up on the container.
    pub dead: bool,
}
