//! What may go wrong with volumes. The texts end up in events, so they are upstream's where it has them.

use std::io;
use std::path::PathBuf;

use stoker_model::handle::ApiError;

/// Why a volume is not there, or does not go.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A ConfigMap or Secret is missing and not optional.
    #[error("{kind} {name:?} not found")]
    NoObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that `items` names is missing and not optional.
    #[error("references non-existent {kind} key: {key}")]
    NoKey {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// A file name that leaves the volume.
    #[error("invalid path {0:?}: it must be relative and must not contain '..'")]
    Path(String),
    /// A downward API field that does not exist.
    #[error("{0}")]
    Field(String),
    /// The path on the host is not what `type` says.
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPathType {
        /// The path.
        path: String,
        /// `a directory` and the like.
        expected: &'static str,
    },
    /// Anything that is said in upstream's own words.
    #[error("{0}")]
    Other(String),
    /// A claim is not what it must be.
    #[error("{0}")]
    Claim(String),
    /// A step of the way that events name, such as `MountVolume.MountDevice failed`.
    #[error("{text}")]
    Step {
        /// As events begin.
        step: &'static str,
        /// Why.
        text: String,
    },
    /// The cluster has not attached the volume yet, which is no failure.
    #[error("volume {0} is not attached according to the node's status")]
    NotAttached(String),
    /// The driver can attach no more volumes to this node, so the pod cannot stay here.
    #[error("context deadline exceeded")]
    AttachLimit,
    /// A CSI driver refused, or did not answer.
    #[error("{text}")]
    Driver {
        /// In gRPC's form.
        text: String,
        /// The driver has ended the operation: nothing of it goes on.
        finished: bool,
        /// It cannot be done in the state in which the volume is.
        refused: bool,
    },
    /// A kind of volume that this agent does not know.
    #[error("no volume plugin matched: volumes of this type are not supported on this node")]
    Unsupported,
    /// The API server did not answer, or refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A file or directory could not be handled.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl VolumeError {
    /// Nothing of the operation goes on anywhere.
    pub(super) const fn is_finished(&self) -> bool {
        !matches!(self, Self::Driver { finished: false, .. })
    }

    pub(super) fn step(step: &'static str) -> impl Fn(Self) -> Self {
        move |error| match error {
            Self::Step { .. } | Self::NotAttached(_) | Self::AttachLimit => error,
            other => Self::Step { step, text: other.to_string() },
        }
    }

    pub(super) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
