//! The API: one path for every request, whether it comes over HTTP or from a room of this process ([`Cluster`]).
//!
//! In:  HTTPS connections ([`serve`]), calls of scheduler and controllers ([`Cluster`]).
//! Out: writes to the store; watches.
//! Not here: rules of a kind (`resources`), who may do what (`auth`), what follows from an object (`controllers`).

mod actions;
mod admission;
mod apply_patch;
mod certificate_admission;
mod cluster;
mod codec;
mod delete;
pub mod discovery;
mod escalation;
mod front_proxy;
mod hooks;
mod impersonate;
mod lookup;
mod meta;
mod node_restriction;
mod nodes;
pub mod openapi;
mod options;
pub mod patch;
mod paths;
pub mod protobuf;
mod proxy;
mod read;
mod respond;
mod route;
mod select;
mod serve;
mod sparse;
mod subresource;
pub mod table;
mod validation;
mod verbs;
mod watch_body;
mod watching;
mod websocket;
mod write;

pub use cluster::{
    Change, Cluster, DeleteOptions, List, ListOptions, Objects, PatchType, Propagation, Watch, WriteOptions,
};
pub use hooks::{Allocation, ServiceAllocator};
pub use nodes::NodeClient;
pub use paths::GIT_VERSION;
pub use serve::{ServerConfig, serve};
