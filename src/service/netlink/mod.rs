//! Our own small netlink: the bytes of nfnetlink messages, and the sockets that carry them.

pub(super) mod message;
pub(super) mod socket;
