//! From routes to element operations: what the kernel's maps hold, and the fewest changes that take them from there to what
//! is wanted.
//!
//! Pure. [`Table`] is our copy of what the kernel was told. [`Table::set`] exchanges the routes of one Service and notes
//! the elements that differ in a [`Batch`]; [`Table::reconcile`] compares everything with what was read from the kernel,
//! after a restart or when somebody else has written there. Backends keep their slot as long as they are wanted: a new one
//! takes slot N, and the last one moves into the hole that another leaves.

use std::collections::BTreeSet;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use stoker_model::service::NamespacedName;

use super::config::Cidr;
use super::frontend::{
    Backend, Backends, Claim, Frontend, HashMap, HashSet, Place, Problem, Protocol, Route, ServiceRoutes,
};

mod element;

pub use element::{Balance, Key, Value, Verdict};

/// Slots of the backends on this node start here, those of all backends at 0: both fit one map.
pub const LOCAL_SLOTS: u32 = 65536;

/// Elements of our sets and maps.
pub type Elements = HashMap<Key, Value>;

/// What to do to the clients that session affinity binds to a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StickyChange {
    /// Of which frontend.
    pub frontend: Frontend,
    /// The time-out that names the sets.
    pub affinity_seconds: u32,
    /// The slot that they are bound to now.
    pub from: u32,
    /// The slot that their backend moved to; none: it is gone, and they are free.
    pub to: Option<u32>,
}

/// Changes that belong into one transaction; of several to one element only the net effect counts.
#[derive(Debug, Default)]
pub struct Batch {
    elements: HashMap<Key, (Option<Value>, Option<Value>)>,
    sticky: Vec<StickyChange>,
    stale_flows: bool,
    /// In the order of their changes, some more than once.
    reported: Vec<NamespacedName>,
    ignore_elements: bool,
}

/// Element operations; the kernel has to take all deletions first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Elements that are there and have to go.
    pub delete: Vec<(Key, Value)>,
    /// Elements to add; none of these keys is there any more.
    pub add: Vec<(Key, Value)>,
    /// Changes to the clients bound by session affinity.
    pub sticky: Vec<StickyChange>,
    /// Whether UDP or SCTP flows may now lead to the wrong place: a backend went, or a Service got its first ones (B1.20).
    pub stale_flows: bool,
}

impl Operations {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty() && self.sticky.is_empty()
    }

    /// Leaves out elements that are deleted and added again as they were.
    pub fn drop_unchanged(&mut self) {
        let deleted: HashSet<(Key, Value)> = self.delete.iter().copied().collect();
        let again: HashSet<(Key, Value)> = self.add.iter().copied().filter(|one| deleted.contains(one)).collect();
        self.delete.retain(|one| !again.contains(one));
        self.add.retain(|one| !again.contains(one));
    }
}

impl Batch {
    /// Notes no elements: for changes after which [`Table::reconcile`] looks at all of them anyway.
    pub fn before_reconciling() -> Self {
        Self { ignore_elements: true, ..Self::default() }
    }

    /// Services whose [`Table::problems`] may have changed.
    pub fn take_reported(&mut self) -> BTreeSet<NamespacedName> {
        std::mem::take(&mut self.reported).into_iter().collect()
    }

    fn note(&mut self, key: Key, before: Option<Value>, after: Option<Value>) {
        if self.ignore_elements {
            return;
        }
        self.elements.entry(key).and_modify(|change| change.1 = after).or_insert((before, after));
    }

    /// The net effect, grouped by map.
    pub fn into_operations(self) -> Operations {
        let mut operations = Operations { sticky: self.sticky, stale_flows: self.stale_flows, ..Operations::default() };
        for (key, (before, after)) in self.elements {
            if before == after {
                continue;
            }
            operations.delete.extend(before.map(|value| (key, value)));
            operations.add.extend(after.map(|value| (key, value)));
        }
        operations.delete.sort_unstable();
        operations.add.sort_unstable();
        operations
    }
}

/// One frontend as the kernel was told.
#[derive(Debug)]
struct Held {
    /// Who claims it, winner first; nearly always one.
    claims: Vec<(Claim, NamespacedName)>,
    /// The winner's route, its backends in the order of their slots.
    route: Route,
    allowed_sources: Box<[Cidr]>,
}

/// What the kernel was told, and by which Service.
#[derive(Debug, Default)]
pub struct Table {
    /// Boxed, as what frontends hold, since a map has room for up to twice its entries.
    services: HashMap<NamespacedName, Box<ServiceRoutes>>,
    frontends: HashMap<Frontend, Box<Held>>,
    cluster_ips: HashMap<IpAddr, u32>,
    hairpins: HashMap<IpAddr, u32>,
    service_ranges: BTreeSet<Cidr>,
}

impl Table {
    /// Makes room at once for so many Services in all, one address and port each.
    pub fn reserve(&mut self, services: usize) {
        let more = services.saturating_sub(self.services.len());
        self.services.reserve(more);
        self.frontends.reserve(more);
        self.cluster_ips.reserve(more);
    }

    /// Exchanges the routes of one Service; empty ones remove it.
    pub fn set(&mut self, name: &NamespacedName, routes: ServiceRoutes, batch: &mut Batch) {
        let old = self.services.remove(name).unwrap_or_default();
        count(&mut self.cluster_ips, &old.cluster_ips, &routes.cluster_ips, Key::ClusterIp, batch);
        count(&mut self.hairpins, &old.hairpins, &routes.hairpins, Key::Hairpin, batch);
        let (before, after) = (&old.serving, &routes.serving);
        batch.stale_flows |=
            before.is_empty() != after.is_empty() || before.iter().any(|backend| after.binary_search(backend).is_err());
        batch.reported.push(name.clone());
        let mut touched: Vec<Frontend> = routes.paths.iter().map(|path| path.frontend).collect();
        for path in &old.paths {
            if let Some(held) = self.frontends.get_mut(&path.frontend) {
                held.claims.retain(|(_, claimant)| claimant != name);
                batch.reported.extend(held.claims.iter().map(|(_, claimant)| claimant.clone()));
            }
            // Few: a Service has few ports, and most only one address.
            if !routes.paths.iter().any(|kept| kept.frontend == path.frontend) {
                touched.push(path.frontend);
            }
        }
        for path in &routes.paths {
            let claims = &mut self.frontends.entry(path.frontend).or_insert_with(|| Box::new(Held::empty())).claims;
            claims.push((path.claim, name.clone()));
            claims.sort_unstable();
            if claims.len() > 1 {
                batch.reported.extend(claims.iter().map(|(_, claimant)| claimant.clone()));
            }
        }
        if routes != ServiceRoutes::default() {
            self.services.insert(name.clone(), Box::new(routes));
        }
        for frontend in touched {
            self.settle(frontend, batch);
        }
    }

    /// Exchanges the ranges that cluster IPs come from: traffic to one that no Service has is dropped (B1.13).
    pub fn set_service_ranges(&mut self, mut ranges: BTreeSet<Cidr>, batch: &mut Batch) {
        let all = ranges.clone();
        // The kernel takes no range within another.
        ranges.retain(|range| !all.iter().any(|other| other != range && other.covers(*range)));
        for gone in self.service_ranges.difference(&ranges) {
            batch.note(Key::ServiceRange(*gone), Some(Value::Present), None);
        }
        for new in ranges.difference(&self.service_ranges) {
            batch.note(Key::ServiceRange(*new), None, Some(Value::Present));
        }
        self.service_ranges = ranges;
    }

    /// Gives a frontend to its first claimant and notes the elements that differ.
    fn settle(&mut self, frontend: Frontend, batch: &mut Batch) {
        let Some(held) = self.frontends.get_mut(&frontend) else { return };
        let winner = held.claims.first().and_then(|(_, name)| self.services.get(name));
        let path = winner.and_then(|routes| routes.paths.iter().find(|path| path.frontend == frontend));
        let Some(path) = path else {
            if let Some(gone) = self.frontends.remove(&frontend) {
                gone.elements(frontend, |key, value| batch.note(key, Some(value), None));
                stick(frontend, &gone.route, None, &mut batch.sticky);
            }
            return;
        };
        if held.allowed_sources == path.allowed_sources && same_backends(&held.route, &path.route) {
            return;
        }
        let route = arranged(&path.route, &held.route);
        let new =
            Held { claims: std::mem::take(&mut held.claims), route, allowed_sources: path.allowed_sources.clone() };
        if batch.ignore_elements && held.route.affinity_seconds().is_none() {
            // As at a start, for thousands: what differs is found by comparing with the kernel.
            **held = new;
            return;
        }
        let mut before = Elements::default();
        held.elements(frontend, |key, value| _ = before.insert(key, value));
        new.elements(frontend, |key, value| {
            let old = before.remove(&key);
            if old != Some(value) {
                batch.note(key, old, Some(value));
            }
        });
        for (key, value) in before {
            batch.note(key, Some(value), None);
        }
        stick(frontend, &held.route, Some(&new.route), &mut batch.sticky);
        **held = new;
    }

    /// Compares with what the kernel holds. Slots that were filled there stay as they are where they can.
    pub fn reconcile(&mut self, mut kernel: Elements) -> Operations {
        let mut slots: HashMap<Frontend, KernelSlots> = HashMap::default();
        for (key, value) in &kernel {
            if let (Key::Slot(at, slot) | Key::StickySlot(slot, at), Value::Backend(backend)) = (key, value) {
                slots.entry(*at).or_default().push(*slot, *backend);
            }
            if let (Key::Route(at), Value::Verdict(Verdict::Balance(balance))) = (key, value) {
                slots.entry(*at).or_default().affinity_seconds = balance.affinity_seconds;
            }
        }
        let mut operations = Operations::default();
        for (frontend, held) in &mut self.frontends {
            if let Some(there) = slots.remove(frontend) {
                let there = there.into_route();
                held.route = arranged(&held.route, &there);
                stick(*frontend, &there, Some(&held.route), &mut operations.sticky);
            }
        }
        if kernel.is_empty() {
            // As on a node's first start, for thousands.
            self.elements(|key, value| operations.add.push((key, value)));
            return operations;
        }
        self.elements(|key, value| match kernel.remove(&key) {
            Some(old) if old == value => {}
            old => {
                operations.delete.extend(old.map(|old| (key, old)));
                operations.add.push((key, value));
            }
        });
        operations.delete.extend(kernel);
        operations
    }

    /// Every element that the kernel should hold.
    pub fn elements(&self, mut each: impl FnMut(Key, Value)) {
        for (frontend, held) in &self.frontends {
            held.elements(*frontend, &mut each);
        }
        self.cluster_ips.keys().for_each(|&ip| each(Key::ClusterIp(ip), Value::Present));
        self.hairpins.keys().for_each(|&ip| each(Key::Hairpin(ip), Value::Present));
        self.service_ranges.iter().for_each(|&range| each(Key::ServiceRange(range), Value::Present));
    }

    /// The backends that may answer for UDP and SCTP frontends, for the search for stale flows (B1.20). Frontends of Services
    /// without any are left out.
    pub fn flow_frontends(&self) -> HashMap<Frontend, &[(Protocol, Backend)]> {
        let others = self.frontends.iter().filter(|(frontend, _)| frontend.protocol != Protocol::Tcp);
        others
            .filter_map(|(frontend, held)| {
                let (_, owner) = held.claims.first()?;
                let serving = &*self.services.get(owner)?.serving;
                serving.iter().any(|(protocol, _)| *protocol == frontend.protocol).then_some((*frontend, serving))
            })
            .collect()
    }

    /// What of one Service is not as its objects say, in the objects themselves or because another Service was first.
    pub fn problems(&self, name: &NamespacedName) -> Vec<Problem> {
        let Some(routes) = self.services.get(name) else { return Vec::new() };
        let mut all = routes.problems.to_vec();
        for path in &routes.paths {
            if let Some((_, owner)) = self.frontends.get(&path.frontend).and_then(|held| held.claims.first())
                && owner != name
            {
                let owner = format!("{}/{}", owner.namespace, owner.name);
                all.push(Problem::Claimed { frontend: path.frontend, owner });
            }
        }
        all
    }

    /// What was programmed for one Service.
    pub fn service(&self, name: &NamespacedName) -> Option<&ServiceRoutes> {
        self.services.get(name).map(Box::as_ref)
    }

    /// Which Service a frontend was given to, and its route.
    pub fn frontend(&self, frontend: &Frontend) -> Option<(&NamespacedName, &Route)> {
        let held = self.frontends.get(frontend)?;
        held.claims.first().map(|(_, name)| (name, &held.route))
    }
}

/// Counts users of addresses that several Services may share.
fn count(users: &mut HashMap<IpAddr, u32>, old: &[IpAddr], new: &[IpAddr], key: fn(IpAddr) -> Key, batch: &mut Batch) {
    for &ip in new {
        let users = users.entry(ip).or_default();
        *users += 1;
        if *users == 1 {
            batch.note(key(ip), None, Some(Value::Present));
        }
    }
    for &ip in old {
        let Some(left) = users.get_mut(&ip) else { continue };
        *left -= 1;
        if *left == 0 {
            users.remove(&ip);
            batch.note(key(ip), Some(Value::Present), None);
        }
    }
}

impl Held {
    /// Nothing in the kernel yet: no route has elements like a balance without backends.
    fn empty() -> Self {
        let route = Route::Balance { backends: Backends::default(), masquerade: false, affinity_seconds: None };
        Self { claims: Vec::with_capacity(1), route, allowed_sources: Box::default() }
    }

    fn elements(&self, at: Frontend, mut each: impl FnMut(Key, Value)) {
        let (backends, local) = self.route.backends();
        let (masquerade, affinity_seconds) = match self.route {
            Route::Balance { masquerade, affinity_seconds, .. } => {
                // Who reaches a NodePort comes from outside, whatever the route says.
                (masquerade || matches!(at.place, Place::Node(_)), affinity_seconds)
            }
            Route::LocalOnly { affinity_seconds, .. } => (false, affinity_seconds),
            Route::Reject | Route::Drop => (false, None),
        };
        let balance = |count: usize, local| {
            let count = u32::try_from(count).unwrap_or(u32::MAX).min(LOCAL_SLOTS);
            Value::Verdict(Verdict::Balance(Balance { count, local, masquerade, affinity_seconds }))
        };
        match &self.route {
            Route::Reject => each(Key::Refusal(at), Value::Verdict(Verdict::Reject)),
            Route::Drop => each(Key::Refusal(at), Value::Verdict(Verdict::Drop)),
            Route::Balance { .. } if backends.is_empty() => {}
            Route::Balance { .. } => each(Key::Route(at), balance(backends.len(), false)),
            Route::LocalOnly { .. } => {
                each(Key::Route(at), Value::Verdict(Verdict::ExternalLocal));
                each(Key::Everywhere(at), balance(backends.len(), false));
                match local.len() {
                    0 => each(Key::Refusal(at), Value::Verdict(Verdict::Drop)),
                    n => each(Key::Local(at), balance(n, true)),
                }
            }
        }
        for (first, backends) in [(0, backends), (LOCAL_SLOTS, local)] {
            for (slot, backend) in (first..first + LOCAL_SLOTS).zip(backends.iter()) {
                let key = if affinity_seconds.is_some() { Key::StickySlot(slot, at) } else { Key::Slot(at, slot) };
                each(key, Value::Backend(backend));
            }
        }
        if !self.allowed_sources.is_empty() {
            each(Key::Guarded(at), Value::Present);
            self.allowed_sources.iter().for_each(|&range| each(Key::Allowed(at, range), Value::Present));
        }
    }
}

/// The slots of one frontend as read from the kernel.
#[derive(Debug, Default)]
struct KernelSlots {
    filled: Vec<(u32, Backend)>,
    affinity_seconds: Option<u32>,
}

impl KernelSlots {
    fn push(&mut self, slot: u32, backend: Backend) {
        self.filled.push((slot, backend));
    }

    fn into_route(mut self) -> Route {
        self.filled.sort_unstable();
        let side = |local: bool| {
            self.filled
                .iter()
                .filter(|(slot, _)| (*slot >= LOCAL_SLOTS) == local)
                .map(|&(_, backend)| backend)
                .collect()
        };
        Route::LocalOnly { everywhere: side(false), local: side(true), affinity_seconds: self.affinity_seconds }
    }
}

impl Route {
    /// All backends, and those kept for traffic from outside under policy `Local`, each in the order of its slots.
    pub fn backends(&self) -> (Backends, Backends) {
        match self {
            Self::Reject | Self::Drop => Default::default(),
            Self::Balance { backends, .. } => (backends.clone(), Backends::default()),
            Self::LocalOnly { everywhere, local, .. } => (everywhere.clone(), local.clone()),
        }
    }

    /// Seconds of session affinity.
    pub fn affinity_seconds(&self) -> Option<u32> {
        match self {
            Self::Reject | Self::Drop => None,
            Self::Balance { affinity_seconds, .. } | Self::LocalOnly { affinity_seconds, .. } => *affinity_seconds,
        }
    }
}

/// `wanted` with its backends in the slots that they have in `there`.
fn arranged(wanted: &Route, there: &Route) -> Route {
    let (old, old_local) = there.backends();
    let mut route = wanted.clone();
    match &mut route {
        Route::Reject | Route::Drop => {}
        Route::Balance { backends, .. } => arrange(&old, backends),
        Route::LocalOnly { local, everywhere, .. } => {
            arrange(&old, everywhere);
            arrange(&old_local, local);
        }
    }
    route
}

/// Brings the wanted backends into the order of slots: those that are there keep their slot, new ones fill holes and then
/// follow, and the last ones move into holes that are left.
fn arrange(there: &Backends, wanted: &mut Backends) {
    if there.is_empty() || wanted == there {
        return;
    }
    let keep: HashSet<Backend> = wanted.iter().collect();
    let known: HashSet<Backend> = there.iter().collect();
    let mut new = wanted.iter().filter(|backend| !known.contains(backend));
    let mut placed = HashSet::with_capacity_and_hasher(keep.len(), RandomState::default());
    // A backend that is there twice, which only a foreign hand can bring about, keeps its first slot.
    let mut slots: Vec<Option<Backend>> =
        there.iter().map(|backend| (keep.contains(&backend) && placed.insert(backend)).then_some(backend)).collect();
    for hole in slots.iter_mut().filter(|slot| slot.is_none()) {
        *hole = new.next();
    }
    slots.extend(new.map(Some));
    let mut arranged: Vec<Backend> = Vec::with_capacity(keep.len());
    let mut rest = slots.into_iter();
    while let Some(slot) = rest.next() {
        let last = || rest.by_ref().rev().flatten().next();
        match slot.or_else(last) {
            Some(backend) => arranged.push(backend),
            None => break,
        }
    }
    *wanted = arranged.into_iter().collect();
}

/// Whether both routes lead to the same backends in the same way, whatever the order.
fn same_backends(a: &Route, b: &Route) -> bool {
    let alike = match (a, b) {
        (Route::Balance { masquerade: x, .. }, Route::Balance { masquerade: y, .. }) => x == y,
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    };
    let same = |x: &Backends, y: &Backends| {
        x == y || (x.len() == y.len() && x.iter().collect::<HashSet<_>>() == y.iter().collect::<HashSet<_>>())
    };
    let ((a_all, a_local), (b_all, b_local)) = (a.backends(), b.backends());
    alike && a.affinity_seconds() == b.affinity_seconds() && same(&a_all, &b_all) && same(&a_local, &b_local)
}

/// Notes what becomes of the clients that session affinity binds to slots which change hands.
fn stick(frontend: Frontend, old: &Route, new: Option<&Route>, changes: &mut Vec<StickyChange>) {
    let Some(affinity_seconds) = old.affinity_seconds() else { return };
    let new = new.filter(|route| route.affinity_seconds() == Some(affinity_seconds));
    let (old_all, old_local) = old.backends();
    let (new_all, new_local) = new.map_or_else(Default::default, Route::backends);
    for (first, old, new) in [(0, old_all, new_all), (LOCAL_SLOTS, old_local, new_local)] {
        let slots: HashMap<Backend, u32> = new.iter().zip(first..).collect();
        for (from, backend) in (first..).zip(old.iter()) {
            let to = slots.get(&backend).copied();
            if to != Some(from) {
                changes.push(StickyChange { frontend, affinity_seconds, from, to });
            }
        }
    }
}

#[cfg(test)]
mod tests;
