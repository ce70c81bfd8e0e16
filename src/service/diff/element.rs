//! One element of our sets and maps: its key, its value, and how both read in errors and explanations.

use std::fmt;
use std::net::IpAddr;

use super::LOCAL_SLOTS;
use crate::service::config::Cidr;
use crate::service::frontend::{Backend, Frontend};

/// The key of one element, in any of our sets and maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Key {
    /// Where traffic to a frontend goes.
    Route(Frontend),
    /// Where this node's own traffic to a frontend with policy `Local` goes.
    Everywhere(Frontend),
    /// Where traffic from outside to a frontend with policy `Local` goes.
    Local(Frontend),
    /// A frontend that is refused or dropped.
    Refusal(Frontend),
    /// The backend in a slot.
    Slot(Frontend, u32),
    /// The backend in a slot of a frontend with session affinity.
    StickySlot(u32, Frontend),
    /// A cluster IP.
    ClusterIp(IpAddr),
    /// The address of a local endpoint, which may talk to itself.
    Hairpin(IpAddr),
    /// A frontend that only some sources may use.
    Guarded(Frontend),
    /// A source that may use a guarded frontend.
    Allowed(Frontend, Cidr),
    /// A range that cluster IPs come from.
    ServiceRange(Cidr),
}

impl Key {
    /// The frontend that the element belongs to, if to one.
    pub fn frontend(&self) -> Option<Frontend> {
        match *self {
            Self::Route(at) | Self::Everywhere(at) | Self::Local(at) | Self::Refusal(at) => Some(at),
            Self::Slot(at, _) | Self::StickySlot(_, at) | Self::Guarded(at) | Self::Allowed(at, _) => Some(at),
            Self::ClusterIp(_) | Self::Hairpin(_) | Self::ServiceRange(_) => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(at) => write!(f, "route of {at}"),
            Self::Everywhere(at) => write!(f, "route of {at} for this node's own traffic"),
            Self::Local(at) => write!(f, "route of {at} for traffic from outside"),
            Self::Refusal(at) => write!(f, "refusal of {at}"),
            Self::Slot(at, slot) | Self::StickySlot(slot, at) if *slot >= LOCAL_SLOTS => {
                write!(f, "local slot {} of {at}", slot - LOCAL_SLOTS)
            }
            Self::Slot(at, slot) => write!(f, "slot {slot} of {at}"),
            Self::StickySlot(slot, at) => write!(f, "slot {slot} of {at}"),
            Self::ClusterIp(ip) => write!(f, "cluster IP {ip}"),
            Self::Hairpin(ip) => write!(f, "local endpoint {ip}"),
            Self::Guarded(at) => write!(f, "guard of {at}"),
            Self::Allowed(at, range) => write!(f, "source {range} of {at}"),
            Self::ServiceRange(range) => write!(f, "range {range} of cluster IPs"),
        }
    }
}

/// What an element says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Value {
    /// It is in the set.
    Present,
    /// Where to go on.
    Verdict(Verdict),
    /// The new destination.
    Backend(Backend),
}

/// Where packets go on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// To one of the backends in the slots.
    Balance(Balance),
    /// To the chain that tells this node's traffic from traffic from outside.
    ExternalLocal,
    /// Refused.
    Reject,
    /// Dropped.
    Drop,
}

/// Which balancing chain; they are shared by all frontends with as many backends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Balance {
    /// How many slots are filled, from 1.
    pub count: u32,
    /// The slots from [`LOCAL_SLOTS`].
    pub local: bool,
    /// Mark for masquerade on the way.
    pub masquerade: bool,
    /// Ask first where the client went before.
    pub affinity_seconds: Option<u32>,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Backend(backend) => backend.fmt(f),
            Self::Verdict(Verdict::ExternalLocal) => f.write_str("by origin"),
            Self::Verdict(Verdict::Reject) => f.write_str("reject"),
            Self::Verdict(Verdict::Drop) => f.write_str("drop"),
            Self::Verdict(Verdict::Balance(balance)) => {
                write!(f, "one of {}", balance.count)?;
                f.write_str(if balance.local { " on this node" } else { "" })?;
                f.write_str(if balance.masquerade { ", masqueraded" } else { "" })?;
                balance.affinity_seconds.map_or(Ok(()), |seconds| write!(f, ", kept for {seconds} s"))
            }
        }
    }
}
