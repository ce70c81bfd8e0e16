//! The HTTPS API of the node.
