//! autoscaling/v2, and autoscaling/v1 as another view of the same objects (C1.4). Nothing scales by them here.

use k8s_openapi::api::autoscaling::{v1, v2};
use serde_json::{Map, Value, json};

use super::tree::{child, fill, items, text};
use super::{ResourceInfo, STATUS, View};

/// Version 2 comes first: it is what is stored, and what [`super::find`] finds.
pub(super) const TABLE: &[ResourceInfo] = &[
    autoscaler(
        ResourceInfo::of::<v2::HorizontalPodAutoscaler>("autoscaling", "v2", KIND, PLURAL, "horizontalpodautoscaler")
            .defaults(default),
    ),
    autoscaler(
        ResourceInfo::of::<v1::HorizontalPodAutoscaler>("autoscaling", "v1", KIND, PLURAL, "horizontalpodautoscaler")
            .stored_as("autoscaling", PLURAL, View { show, store }),
    ),
];

const KIND: &str = "HorizontalPodAutoscaler";
const PLURAL: &str = "horizontalpodautoscalers";

const fn autoscaler(info: ResourceInfo) -> ResourceInfo {
    info.namespaced().short(&["hpa"]).in_all().with_status_only().subresources(&[STATUS])
}

/// Version 1 has no fields for these: they travel as annotations, as version 2 writes them, so that nothing is lost
/// when a client of version 1 writes back what it read.
const ANNOTATIONS: [(&str, &str); 2] =
    [("metrics", "autoscaling.alpha.kubernetes.io/metrics"), ("behavior", "autoscaling.alpha.kubernetes.io/behavior")];

fn default(autoscaler: &mut Value) {
    let spec = child(autoscaler, "spec");
    fill(spec, "minReplicas", 1);
    if items(spec, "metrics").next().is_none() {
        spec["metrics"] = json!([cpu(80.into())]);
    }
}

fn cpu(percent: Value) -> Value {
    json!({
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
    })
}

fn is_cpu(metric: &Value) -> bool {
    text(metric, "type") == "Resource" && text(&metric["resource"], "name") == "cpu"
}

/// As version 1. The status loses its conditions and all current values but that of cpu.
fn show(mut autoscaler: Value) -> Value {
    autoscaler["apiVersion"] = json!("autoscaling/v1");
    let spec = child(&mut autoscaler, "spec");
    if let Some(metrics) = spec.get_mut("metrics").and_then(Value::as_array_mut) {
        let percent = |metric: &Value| metric["resource"]["target"]["averageUtilization"].clone();
        if let Some(at) = metrics.iter().position(|metric| is_cpu(metric) && percent(metric).is_i64()) {
            let target = percent(&metrics.remove(at));
            spec["targetCPUUtilizationPercentage"] = target;
        }
    }
    for (field, annotation) in ANNOTATIONS {
        let Some(rest) = autoscaler["spec"].as_object_mut().and_then(|spec| spec.remove(field)) else { continue };
        if rest != json!([]) {
            child(child(&mut autoscaler, "metadata"), "annotations")[annotation] = rest.to_string().into();
        }
    }
    if let Some(status) = autoscaler.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("conditions");
        let current = status.remove("currentMetrics").unwrap_or_default();
        let mut metrics = current.as_array().into_iter().flatten();
        if let Some(cpu) = metrics.find(|metric| is_cpu(metric)) {
            let percent = cpu["resource"]["current"]["averageUtilization"].clone();
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent);
        }
    }
    autoscaler
}

fn store(mut autoscaler: Value) -> Value {
    autoscaler["apiVersion"] = json!("autoscaling/v2");
    for (field, annotation) in ANNOTATIONS {
        let annotations = autoscaler.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        let text = annotations.and_then(|annotations| annotations.remove(annotation));
        // What is no JSON was written by no server; it goes.
        if let Some(rest) = text.as_ref().and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok()) {
            child(&mut autoscaler, "spec")[field] = rest;
        }
    }
    if autoscaler["metadata"]["annotations"].as_object().is_some_and(Map::is_empty)
        && let Some(metadata) = autoscaler["metadata"].as_object_mut()
    {
        metadata.remove("annotations");
    }
    let spec = child(&mut autoscaler, "spec");
    let target = spec.as_object_mut().and_then(|spec| spec.remove("targetCPUUtilizationPercentage"));
    if let Some(target) = target.filter(|target| !target.is_null()) {
        fill(spec, "metrics", json!([]));
        if let Some(metrics) = spec["metrics"].as_array_mut() {
            metrics.insert(0, cpu(target));
        }
    }
    autoscaler
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoscaler_is_the_same_in_both_versions() {
        // C1.4
        let memory = json!({
            "type": "Resource",
            "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}},
        });
        for metrics in [json!([cpu(70.into())]), json!([cpu(70.into()), memory])] {
            let stored = json!({
                "apiVersion": "autoscaling/v2", "kind": KIND, "metadata": {"name": "h"},
                "spec": {"maxReplicas": 3, "metrics": metrics, "behavior": {"scaleUp": {"selectPolicy": "Min"}}},
            });
            let shown = show(stored.clone());
            assert_eq!(shown["apiVersion"], "autoscaling/v1");
            assert_eq!(shown["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 70}));
            assert_eq!(store(shown), stored);
        }
    }

    #[test]
    fn cpu_is_the_default() {
        // C3.23
        let mut autoscaler = store(json!({"spec": {"maxReplicas": 3}}));
        default(&mut autoscaler);
        assert_eq!(
            show(autoscaler)["spec"],
            json!({"minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 80})
        );
    }
}
