//! events.k8s.io/v1: the same objects as core events, under other field names (C1.9).

use k8s_openapi::api::core::v1 as core;

use super::ResourceInfo;
use super::core::event_fields;

pub(super) const TABLE: &[ResourceInfo] =
    &[ResourceInfo::of::<core::Event>("events.k8s.io", "v1", "Event", "events", "event")
        .namespaced()
        .short(&["ev"])
        .fields(event_fields::REGARDING)
        .stored_as("", "events")];
