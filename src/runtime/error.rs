//! What may go wrong with the runtime, by what a caller may do about it.

use std::time::Duration;

use tonic::{Code, Status};

/// A call to the runtime that did not succeed.
///
/// The texts are those of the runtime where it gave one: they end up in the status and the events of pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The endpoint is no address of a unix socket: nothing will work until the operator corrects it.
    #[error("container runtime endpoint {endpoint:?} is not like unix:///run/containerd/containerd.sock")]
    Endpoint {
        /// As configured.
        endpoint: String,
    },
    /// There is no such sandbox, container or image (any more). For a removal that is success.
    #[error("{0}")]
    NotFound(String),
    /// The runtime cannot be reached or is just starting. Try again with back-off; nothing is known about what runs.
    #[error("container runtime is unavailable: {0}")]
    Unavailable(String),
    /// The runtime did not answer in time. It may still do what it was asked to: look before trying again.
    #[error("{call} did not return within {} s", .after.as_secs())]
    TimedOut {
        /// The CRI call.
        call: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// This runtime does not have that call. Do without.
    #[error("the container runtime does not support {call}")]
    Unsupported {
        /// The CRI call.
        call: &'static str,
    },
    /// An image did not come. Try again with back-off.
    #[error("{message}")]
    ImagePull {
        /// What kind of failure, where it is known.
        failure: PullFailure,
        /// The runtime's words.
        message: String,
    },
    /// The runtime refused or failed. The same call may succeed later or never; only a person can tell.
    #[error("{message}")]
    Failed {
        /// The CRI call.
        call: &'static str,
        /// The runtime's words.
        message: String,
    },
}

/// Why an image did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullFailure {
    /// The reference cannot be parsed: no attempt will ever help (`InvalidImageName`).
    InvalidName,
    /// The registry cannot be reached (`RegistryUnavailable`).
    RegistryUnavailable,
    /// The signature is missing or wrong (`SignatureValidationFailed`).
    SignatureValidation,
    /// Everything else (`ErrImagePull`).
    Other,
}

impl RuntimeError {
    /// Whether the thing that was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    /// Whether the runtime itself is away, so that nothing was learnt.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    pub(super) fn from_status(call: &'static str, deadline: Duration, status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::NotFound(message),
            // A connection that breaks during a call is reported as Unknown or Internal by the transport.
            Code::Unavailable => Self::Unavailable(message),
            Code::Unknown | Code::Internal | Code::Cancelled if is_transport(&status) => {
                Self::Unavailable(format!("the connection broke during {call}: {message}"))
            }
            // While it starts, containerd serves the socket before its CRI plugin.
            Code::Unimplemented if message.contains("unknown service runtime.v1.") => {
                Self::Unavailable(format!("{message}; is the CRI plugin disabled in its configuration?"))
            }
            Code::Unimplemented => Self::Unsupported { call },
            Code::DeadlineExceeded => Self::TimedOut { call, after: deadline },
            _ => Self::Failed { call, message },
        }
    }

    /// What a failed pull means. The two prefixes are those that CRI agreed on.
    pub(super) fn into_pull_failure(self) -> Self {
        let (Self::NotFound(message) | Self::Failed { message, .. }) = self else { return self };
        let failure = if message.contains("RegistryUnavailable") {
            PullFailure::RegistryUnavailable
        } else if message.contains("SignatureValidationFailed") {
            PullFailure::SignatureValidation
        } else if message.contains("failed to parse image reference") || message.contains("invalid reference format") {
            PullFailure::InvalidName
        } else {
            PullFailure::Other
        };
        Self::ImagePull { failure, message }
    }
}

/// Whether the error comes from our end of the connection instead of from the runtime.
fn is_transport(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<h2::Error>() || error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}
