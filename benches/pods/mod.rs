//! What benches of pods share: the API as a client sees it, the runtime without an agent, and figures.

#![allow(dead_code, reason = "each bench uses another part of it")]

pub(crate) mod cluster;
pub(crate) mod figures;
pub(crate) mod raw;
pub(crate) mod requests;

use std::time::Duration;

/// Ends a bench: it is broken.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Ends at once when told to.
pub(crate) const SCRIPT: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"];
/// Something is broken when a call, or a pod, takes longer.
pub(crate) const LONGEST: Duration = Duration::from_secs(180);
/// Raw calls, and requests to the API, that are made at the same time where there are many.
pub(crate) const AT_ONCE: usize = 10;
