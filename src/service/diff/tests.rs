//! Whatever happens to Services: the kernel, given the operations, holds what a fresh start would write.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::service::frontend::{Claim, Family, Path};

fn name(n: u8) -> NamespacedName {
    NamespacedName { namespace: "default".into(), name: format!("service-{n}").into() }
}

fn backend(n: u8) -> Backend {
    Backend { ip: IpAddr::from([10, 244, 0, n]), port: 8080 }
}

fn vip(n: u8, protocol: Protocol) -> Frontend {
    Frontend { place: Place::Address(IpAddr::from([10, 96, 0, n])), protocol, port: 80 }
}

/// A kernel that takes only what the real one would take.
#[derive(Default)]
struct FakeKernel(Elements);

impl FakeKernel {
    fn apply(&mut self, operations: &Operations) {
        for (key, value) in &operations.delete {
            assert_eq!(self.0.remove(key), Some(*value), "deleted {key:?}");
        }
        for (key, value) in &operations.add {
            assert_eq!(self.0.insert(*key, *value), None, "added {key:?} over another");
        }
    }
}

fn elements(table: &Table) -> Elements {
    let mut all = Elements::default();
    table.elements(|key, value| assert_eq!(all.insert(key, value), None, "{key:?} twice"));
    all
}

/// Elements without the numbers of slots, which depend on history; but these must be without holes.
fn without_slots(elements: &Elements) -> BTreeSet<(Key, Value)> {
    let mut slots: BTreeMap<(Frontend, bool), BTreeSet<u32>> = BTreeMap::new();
    let plain = elements.iter().map(|(key, value)| match *key {
        Key::Slot(at, slot) | Key::StickySlot(slot, at) => {
            slots.entry((at, slot >= LOCAL_SLOTS)).or_default().insert(slot % LOCAL_SLOTS);
            (Key::Slot(at, slot / LOCAL_SLOTS * LOCAL_SLOTS), *value)
        }
        key => (key, *value),
    });
    let plain = plain.collect();
    for (of, slots) in slots {
        assert!(slots.iter().copied().eq(0..u32::try_from(slots.len()).unwrap()), "holes in {of:?}: {slots:?}");
    }
    plain
}

fn any_route() -> impl Strategy<Value = Route> {
    let backends = |from: usize| {
        prop::collection::btree_set(0..12_u8, from..12).prop_map(|set| set.into_iter().map(backend).collect())
    };
    let affinity = prop::option::of(prop::sample::select(vec![60_u32, 10800]));
    prop_oneof![
        1 => Just(Route::Reject),
        1 => Just(Route::Drop),
        4 => (backends(1), any::<bool>(), affinity.clone())
            .prop_map(|(backends, masquerade, affinity_seconds)| Route::Balance { backends, masquerade, affinity_seconds }),
        2 => (backends(0), backends(1), affinity)
            .prop_map(|(local, everywhere, affinity_seconds)| Route::LocalOnly { local, everywhere, affinity_seconds }),
    ]
}

fn any_frontend() -> impl Strategy<Value = Frontend> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    // Few addresses, so that Services fight for them.
    let place = prop_oneof![
        (0..3_u8).prop_map(|n| Place::Address(IpAddr::from([10, 96, 0, n]))),
        Just(Place::Node(Family::Ipv4))
    ];
    (place, protocol).prop_map(|(place, protocol)| Frontend { place, protocol, port: 80 })
}

fn any_routes() -> impl Strategy<Value = ServiceRoutes> {
    let claim = prop::sample::select(vec![Claim::Allocated, Claim::External]);
    let ranges = prop::collection::btree_set(1..4_u8, 0..3)
        .prop_map(|all| all.into_iter().filter_map(|n| Cidr::new(IpAddr::from([n, 0, 0, 0]), 8)).collect::<Box<[_]>>());
    let path = (any_route(), claim, ranges);
    let ips = || {
        prop::collection::btree_set(0..4_u8, 0..3)
            .prop_map(|all| all.into_iter().map(|n| IpAddr::from([10, 96, 0, n])).collect::<Box<[_]>>())
    };
    (prop::collection::btree_map(any_frontend(), path, 0..4), ips(), ips()).prop_map(
        |(paths, cluster_ips, hairpins)| {
            let paths = paths.into_iter().map(|(frontend, (route, claim, allowed_sources))| Path {
                frontend,
                claim,
                route,
                allowed_sources,
            });
            ServiceRoutes { paths: paths.collect(), cluster_ips, hairpins, ..ServiceRoutes::default() }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_history_ends_where_a_fresh_start_does(
        history in prop::collection::vec((0..4_u8, any_routes()), 1..20),
        batch_length in 1..4_usize,
    ) {
        let (mut table, mut kernel) = (Table::default(), FakeKernel::default());
        let mut last = BTreeMap::new();
        for changes in history.chunks(batch_length) {
            let mut batch = Batch::default();
            for (service, routes) in changes {
                table.set(&name(*service), routes.clone(), &mut batch);
                last.insert(*service, routes.clone());
            }
            kernel.apply(&batch.into_operations());
            prop_assert_eq!(&kernel.0, &elements(&table));
        }
        let mut fresh = Table::default();
        for (service, routes) in last {
            fresh.set(&name(service), routes, &mut Batch::default());
        }
        prop_assert_eq!(without_slots(&kernel.0), without_slots(&elements(&fresh)));

        // A restarted daemon finds nothing to write, and repairs whatever somebody else left.
        let mut restarted = fresh;
        prop_assert_eq!(restarted.reconcile(kernel.0.clone()), Operations::default());
        let mut damaged = FakeKernel(kernel.0.iter().step_by(2).map(|(key, value)| (*key, *value)).collect());
        let repair = restarted.reconcile(damaged.0.clone());
        damaged.apply(&repair);
        prop_assert_eq!(&damaged.0, &elements(&restarted));
    }

    #[test]
    fn backends_that_stay_keep_their_slot(
        there in prop::collection::btree_set(0..20_u8, 0..12),
        wanted in prop::collection::btree_set(0..20_u8, 0..12),
    ) {
        let list = |set: &BTreeSet<u8>| set.iter().copied().map(backend).collect::<Backends>();
        let (old, mut new) = (list(&there), list(&wanted));
        arrange(&old, &mut new);
        prop_assert_eq!(new.iter().collect::<BTreeSet<_>>(), list(&wanted).iter().collect::<BTreeSet<_>>());
        prop_assert_eq!(new.len(), wanted.len());
        let moved = old.iter().zip(new.iter()).filter(|(a, b)| a != b && wanted.contains(&a.ip_byte())).count();
        let holes = there.difference(&wanted).count();
        prop_assert!(moved <= holes, "{} moved into {} holes", moved, holes);
    }
}

impl Backend {
    fn ip_byte(&self) -> u8 {
        match self.ip {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        }
    }
}

fn balance(backends: &[u8], affinity_seconds: Option<u32>) -> Route {
    Route::Balance { backends: backends.iter().copied().map(backend).collect(), masquerade: false, affinity_seconds }
}

fn one(frontend: Frontend, route: Route) -> ServiceRoutes {
    let path = Path { frontend, claim: Claim::Allocated, route, allowed_sources: Box::default() };
    ServiceRoutes { paths: [path].into(), ..ServiceRoutes::default() }
}

fn operations(table: &mut Table, service: u8, routes: ServiceRoutes) -> Operations {
    let mut batch = Batch::default();
    table.set(&name(service), routes, &mut batch);
    batch.into_operations()
}

/// Work is proportional to the change: one endpoint more writes a slot and the verdict, one less moves one slot.
#[test]
fn a_change_writes_only_itself() {
    let (mut table, at) = (Table::default(), vip(1, Protocol::Tcp));
    operations(&mut table, 1, one(at, balance(&[1, 2, 3], None)));
    let more = operations(&mut table, 1, one(at, balance(&[0, 1, 2, 3], None)));
    assert_eq!(more.add.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [Key::Route(at), Key::Slot(at, 3)]);
    assert_eq!(more.delete.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [Key::Route(at)]);
    let fewer = operations(&mut table, 1, one(at, balance(&[0, 2, 3], None)));
    assert_eq!(fewer.add.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [Key::Route(at), Key::Slot(at, 0)]);
    assert!(fewer.add.contains(&(Key::Slot(at, 0), Value::Backend(backend(0)))), "the last moved into the hole");
    assert!(operations(&mut table, 1, one(at, balance(&[3, 2, 0], None))).is_empty(), "order is nothing");
}

#[test]
fn clients_follow_their_backend_or_are_freed() {
    let (mut table, at) = (Table::default(), vip(1, Protocol::Tcp));
    operations(&mut table, 1, one(at, balance(&[1, 2, 3], Some(60))));
    let changes = operations(&mut table, 1, one(at, balance(&[2, 3], Some(60)))).sticky;
    let change = |from, to| StickyChange { frontend: at, affinity_seconds: 60, from, to };
    assert_eq!(changes, [change(0, None), change(2, Some(0))]);
}

/// An external IP that is another Service's cluster IP gets nothing until that is gone.
#[test]
fn a_claimed_frontend_stays_with_its_service() {
    let (mut table, at) = (Table::default(), vip(1, Protocol::Tcp));
    let mut thief = one(at, balance(&[9], None));
    thief.paths[0].claim = Claim::External;
    operations(&mut table, 1, thief);
    operations(&mut table, 2, one(at, balance(&[1], None)));
    assert_eq!(table.frontend(&at).unwrap().0, &name(2));
    operations(&mut table, 2, ServiceRoutes::default());
    assert_eq!(table.frontend(&at).unwrap().0, &name(1));
}

#[test]
fn udp_backends_that_go_are_noticed() {
    let (mut table, at) = (Table::default(), vip(1, Protocol::Udp));
    let serving = |all: &[u8]| {
        let serving = all.iter().map(|&n| (Protocol::Udp, backend(n))).collect();
        ServiceRoutes { serving, ..one(at, balance(&[1], None)) }
    };
    assert!(operations(&mut table, 1, serving(&[1])).stale_flows, "the first one");
    assert!(!operations(&mut table, 1, serving(&[1, 2])).stale_flows, "one more");
    assert!(operations(&mut table, 1, serving(&[1])).stale_flows, "one less, though it was not in use");
    assert_eq!(table.flow_frontends()[&at], [(Protocol::Udp, backend(1))]);
    assert!(!operations(&mut table, 2, one(vip(2, Protocol::Tcp), balance(&[1], None))).stale_flows);
}
