//! This node's certificates: asks the cluster for them, keeps them on disk as kubelet does, and has them replaced before they end.
//!
//! [`Identity`] is what the node shows to the API server; the connection asks it at each handshake. [`ClientKeeper`] and
//! [`ServingKeeper`] are the two tasks that own a file each. When to act and what to ask for is decided in `rules`, which is pure.

mod client;
mod identity;
mod request;
mod rules;
mod serving;
mod store;

pub use client::{ClientKeeper, follow_files, until_hopeless};
pub use identity::{Identity, IdentitySource, Shown};
pub use serving::ServingKeeper;
pub use store::CertificateStore;
