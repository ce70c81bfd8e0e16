//! The kinds that this API server serves.

pub mod columns;
