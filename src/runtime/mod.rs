//! The container runtime: CRI over tonic, its event stream, images, logs and the pause image.
//!
//! [`Runtime`] is the client that everybody clones; [`cri`] holds the generated types of `proto/cri.proto`, which are also the
//! parameters and results of its methods. Nothing here knows what a pod of the API is: `pod` translates.

mod client;
mod connection;
pub mod credentials;
pub mod cri;
mod ending;
mod error;
pub mod events;
pub mod gc;
mod images;
mod import;
pub mod logs;
pub mod pause;
pub mod plugins;
mod pulled;
mod socket;
mod turns;

pub use client::Runtime;
pub(crate) use ending::Awaited;
pub use error::{PullFailure, RuntimeError};
pub use images::{Credential, Images, NodeCredentials, Pull, Pulled, SecretRef};
pub use import::{ImageSource, import};
pub use plugins::Asker;
pub use pulled::{BadPolicy, PullRecords, VerificationPolicy};
