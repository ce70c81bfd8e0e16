//! What the API says about itself: types and their merge rules, field checks, and the OpenAPI documents.

pub mod definitions;
pub mod extensions;
pub mod types;
