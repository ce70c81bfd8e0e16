//! The API: one path for every request, whether it comes over HTTP or from a room of this process ([`Cluster`]).
//!
//! In:  HTTPS connections ([`serve`]), calls of scheduler and controllers ([`Cluster`]).
//! Out: writes to the store; watches.
//! Not here: rules of a kind (`resources`), who may do what (`auth`), what follows from an object (`controllers`).

mod cluster;
mod hooks;
pub mod openapi;
pub mod patch;

pub use cluster::{
    Change, Cluster, DeleteOptions, List, ListOptions, Objects, PatchType, Propagation, Watch, WriteOptions,
};
pub use hooks::{Allocation, ServiceAllocator};
