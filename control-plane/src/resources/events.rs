//! events.k8s.io/v1: the same objects as core events, under other field names (C1.9).

use k8s_openapi::api::events::v1 as api;
use serde_json::{Value, json};

use super::core::event_fields;
use super::{ResourceInfo, View};

pub(super) const TABLE: &[ResourceInfo] =
    &[ResourceInfo::of::<api::Event>("events.k8s.io", "v1", "Event", "events", "event")
        .namespaced()
        .short(&["ev"])
        .fields(event_fields::REGARDING)
        .stored_as("", "events", View { show, store })];

/// This group's name and the core name of a field.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(event: &mut Value, from: &str, to: &str) {
    let Some(fields) = event.as_object_mut() else { return };
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

fn show(mut event: Value) -> Value {
    for (ours, core) in NAMES {
        rename(&mut event, core, ours);
    }
    event["apiVersion"] = json!("events.k8s.io/v1");
    event
}

fn store(mut event: Value) -> Value {
    for (ours, core) in NAMES {
        rename(&mut event, ours, core);
    }
    event["apiVersion"] = json!("v1");
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_the_same_in_both_groups() {
        // C1.9
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"},
            "message": "m", "reason": "r", "reportingComponent": "c", "count": 2, "type": "Normal",
        });
        let shown = show(core.clone());
        assert_eq!(shown["regarding"]["kind"], "Pod");
        assert_eq!(shown["note"], "m");
        assert_eq!(shown["deprecatedCount"], 2);
        assert_eq!(store(shown), core);
    }
}
