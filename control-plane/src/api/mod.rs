//! The API server's HTTP face.

pub mod openapi;
pub mod patch;
