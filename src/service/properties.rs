//! Whatever is told about Services and slices, in whatever order: what was written step by step is what a fresh start writes,
//! and each frontend's elements fit together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use stoker_model::service::{EndpointSlice, KeptSlice, NamespacedName, NodeTopology, Service, ServiceChange};

use super::diff::{Batch, Elements, Key, LOCAL_SLOTS, Operations, Table, Value, Verdict};
use super::frontend::Frontend;
use super::model::Model;

fn node() -> Arc<NodeTopology> {
    Arc::new(NodeTopology { name: "here".into(), zone: Some("a".into()), ips: vec![[192, 0, 2, 1].into()] })
}

fn any_endpoint() -> impl Strategy<Value = Json> {
    let flag = || prop::option::weighted(0.4, any::<bool>());
    let place = prop::sample::select(vec!["here", "there"]);
    let hints = prop::option::weighted(0.5, prop::sample::select(vec!["a", "b"]));
    (0..12_u8, place, flag(), flag(), flag(), hints).prop_map(|(n, node, ready, serving, terminating, zone)| {
        json!({
            "addresses": [format!("10.244.0.{n}")], "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "hints": {"forZones": zone.into_iter().map(|zone| json!({"name": zone})).collect::<Vec<_>>()},
        })
    })
}

fn any_spec() -> impl Strategy<Value = Json> {
    let kind = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]);
    let policy = || prop::sample::select(vec!["Cluster", "Local"]);
    let affinity = prop::sample::select(vec!["None", "ClientIP"]);
    let protocol = prop::sample::select(vec!["TCP", "UDP"]);
    let externals = prop::collection::vec(1..4_u8, 0..3);
    (kind, policy(), policy(), affinity, protocol, externals, any::<bool>()).prop_map(
        |(kind, internal, external, affinity, protocol, externals, ranges)| {
            json!({
                "type": kind, "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                "sessionAffinity": affinity, "loadBalancerSourceRanges": if ranges { vec!["10.0.0.0/8"] } else { vec![] },
                // Few addresses, so that Services fight for them.
                "externalIPs": externals.iter().map(|n| format!("10.96.0.{n}")).collect::<Vec<_>>(),
                "ports": [{"port": 80, "protocol": protocol,
                    "nodePort": if kind == "NodePort" || kind == "LoadBalancer" { 30080 } else { 0 }}],
            })
        },
    )
}

fn any_change() -> impl Strategy<Value = ServiceChange> {
    let name = |n: u8| format!("web-{n}");
    let service = (0..4_u8, any_spec()).prop_map(move |(n, mut spec)| {
        let ip = format!("10.96.0.{n}");
        if spec["type"] != "ExternalName" {
            spec["clusterIP"] = json!(ip);
            spec["clusterIPs"] = json!([ip]);
        }
        let object = json!({"metadata": {"name": name(n), "namespace": "d"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
        ServiceChange::Service(Arc::new(serde_json::from_value(object).unwrap()))
    });
    let slice = (0..4_u8, 0..3_u8, prop::collection::vec(any_endpoint(), 0..8)).prop_map(move |(n, slice, endpoints)| {
        let object = json!({
            "metadata": {"name": format!("s-{slice}"), "namespace": "d", "labels": {"kubernetes.io/service-name": name(n)}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"port": 8080, "protocol": "TCP"}, {"port": 8080, "protocol": "UDP"}],
        });
        ServiceChange::from(serde_json::from_value::<EndpointSlice>(object).unwrap())
    });
    let named = move |n: u8| NamespacedName { namespace: "d".into(), name: name(n).into() };
    prop_oneof![
        3 => service,
        6 => slice,
        1 => (0..4_u8).prop_map(move |n| ServiceChange::ServiceGone(named(n))),
        1 => (0..4_u8, 0..3_u8).prop_map(move |(n, slice)| {
            ServiceChange::SliceGone(NamespacedName { namespace: "d".into(), name: name(n).into() }, format!("s-{slice}").into())
        }),
    ]
}

/// All Services and slices as last seen.
#[derive(Default)]
struct ServiceCatalogue {
    services: BTreeMap<NamespacedName, Arc<Service>>,
    /// By their Service, then by their own name.
    slices: BTreeMap<NamespacedName, BTreeMap<Arc<str>, Arc<KeptSlice>>>,
}

/// What the changes leave.
fn note(catalogue: &mut ServiceCatalogue, change: &ServiceChange) {
    match change.clone() {
        ServiceChange::Service(service) => {
            catalogue.services.insert(service.metadata.key.clone(), service);
        }
        ServiceChange::ServiceGone(name) => _ = catalogue.services.remove(&name),
        ServiceChange::Slice(slice, _) => {
            catalogue.slices.entry(slice.service.clone()).or_default().insert(slice.name.clone(), slice);
        }
        ServiceChange::SliceGone(service, name) => {
            catalogue.slices.entry(service).or_default().remove(&name);
        }
        ServiceChange::Complete | ServiceChange::Restarting => {}
    }
}

fn synchronise(model: &mut Model, table: &mut Table) -> Operations {
    let mut batch = Batch::default();
    for name in model.take_dirty() {
        table.set(&name, model.routes(&name), &mut batch);
    }
    batch.into_operations()
}

fn apply(kernel: &mut Elements, operations: &Operations) {
    for (key, value) in &operations.delete {
        assert_eq!(kernel.remove(key), Some(*value), "deleted {key}");
    }
    for (key, value) in &operations.add {
        assert_eq!(kernel.insert(*key, *value), None, "added {key} over another");
    }
}

/// Elements but for the order of slots, which depends on history.
fn unordered(kernel: &Elements) -> BTreeSet<(Key, Value)> {
    let first = |slot: u32| slot / LOCAL_SLOTS * LOCAL_SLOTS;
    let plain = kernel.iter().map(|(key, value)| match *key {
        Key::Slot(at, slot) => (Key::Slot(at, first(slot)), *value),
        Key::StickySlot(slot, at) => (Key::StickySlot(first(slot), at), *value),
        key => (key, *value),
    });
    plain.collect()
}

/// Every drawn number has its slot, and there is none that is not drawn.
fn assert_complete(kernel: &Elements) {
    let mut slots: BTreeMap<(Frontend, bool, bool), BTreeSet<u32>> = BTreeMap::new();
    for key in kernel.keys() {
        match *key {
            Key::Slot(at, slot) => {
                slots.entry((at, slot >= LOCAL_SLOTS, false)).or_default().insert(slot % LOCAL_SLOTS)
            }
            Key::StickySlot(slot, at) => {
                slots.entry((at, slot >= LOCAL_SLOTS, true)).or_default().insert(slot % LOCAL_SLOTS)
            }
            _ => continue,
        };
    }
    for (key, value) in kernel {
        let (Key::Route(at) | Key::Everywhere(at) | Key::Local(at), Value::Verdict(Verdict::Balance(balance))) =
            (key, value)
        else {
            continue;
        };
        let filled = slots.remove(&(*at, balance.local, balance.affinity_seconds.is_some())).unwrap_or_default();
        assert!(filled.into_iter().eq(0..balance.count), "{key} = {value}");
    }
    assert!(slots.is_empty(), "nobody draws {slots:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn step_by_step_is_the_same_as_at_once(history in prop::collection::vec(any_change(), 1..40), step in 1..5_usize) {
        let (mut model, mut table, mut kernel) = (Model::new(node()), Table::default(), Elements::default());
        let mut catalogue = ServiceCatalogue::default();
        history.iter().for_each(|change| note(&mut catalogue, change));
        model.apply(ServiceChange::Complete);
        for changes in history.chunks(step) {
            changes.iter().cloned().for_each(|change| model.apply(change));
            apply(&mut kernel, &synchronise(&mut model, &mut table));
            assert_complete(&kernel);
        }
        let mut at_once = Model::new(node());
        catalogue.services.values().cloned().for_each(|service| at_once.apply(ServiceChange::Service(service)));
        let slices = catalogue.slices.values().flat_map(BTreeMap::values);
        slices.cloned().for_each(|slice| at_once.apply(ServiceChange::Slice(slice, None)));
        at_once.apply(ServiceChange::Complete);
        let (mut fresh, mut written) = (Table::default(), Elements::default());
        apply(&mut written, &synchronise(&mut at_once, &mut fresh));
        prop_assert_eq!(unordered(&kernel), unordered(&written));
        prop_assert_eq!(fresh.reconcile(kernel.clone()), Operations::default(), "a restart has nothing to write");
    }
}
