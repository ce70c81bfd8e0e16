//! Sets of Services and slices that find them by the names in the objects, which no key beside them repeats.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{KeptSlice, NamespacedName, Service};

/// A Service that equals any other of its name.
#[derive(Clone, Debug)]
pub struct ServiceByName(pub Arc<Service>);

impl Borrow<NamespacedName> for ServiceByName {
    fn borrow(&self) -> &NamespacedName {
        &self.0.metadata.key
    }
}

impl PartialEq for ServiceByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.metadata.key == other.0.metadata.key
    }
}

impl Eq for ServiceByName {}

impl PartialOrd for ServiceByName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ServiceByName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.metadata.key.cmp(&other.0.metadata.key)
    }
}

impl Hash for ServiceByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.metadata.key.hash(state);
    }
}

/// Slices by their Service.
#[derive(Debug, Default)]
pub struct Slices(HashSet<OfOne, RandomState>);

/// The slices of one Service in the order of their names, at least one.
#[derive(Debug)]
struct OfOne(Box<[Arc<KeptSlice>]>);

impl Borrow<NamespacedName> for OfOne {
    fn borrow(&self) -> &NamespacedName {
        &self.0[0].service
    }
}

impl PartialEq for OfOne {
    fn eq(&self, other: &Self) -> bool {
        self.0[0].service == other.0[0].service
    }
}

impl Eq for OfOne {}

impl Hash for OfOne {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0[0].service.hash(state);
    }
}

impl Slices {
    /// Those of one Service, in the order of their names.
    pub fn of(&self, service: &NamespacedName) -> &[Arc<KeptSlice>] {
        self.0.get(service).map_or(&[], |all| &all.0)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeptSlice>> {
        self.0.iter().flat_map(|all| &all.0)
    }

    /// Takes in a slice, in place of the one of its name; whether that changed anything.
    pub fn put(&mut self, slice: Arc<KeptSlice>) -> bool {
        let Some(OfOne(mut all)) = self.0.take(&slice.service) else {
            return self.0.insert(OfOne([slice].into()));
        };
        let changed = match all.binary_search_by(|other| other.name.cmp(&slice.name)) {
            Ok(at) => {
                let changed = all[at] != slice;
                all[at] = slice;
                changed
            }
            Err(at) => {
                let mut more = all.into_vec();
                more.insert(at, slice);
                all = more.into();
                true
            }
        };
        self.0.insert(OfOne(all));
        changed
    }

    /// Drops a slice; whether it was there.
    pub fn remove(&mut self, service: &NamespacedName, name: &str) -> bool {
        let Some(OfOne(all)) = self.0.take(service) else { return false };
        let mut left = all.into_vec();
        let before = left.len();
        left.retain(|slice| *slice.name != *name);
        let removed = left.len() < before;
        if !left.is_empty() {
            self.0.insert(OfOne(left.into()));
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Shared;

    fn slice(service: &str, name: &str, port: u16) -> Arc<KeptSlice> {
        let slice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": "a", "labels": {crate::names::SERVICE_NAME: service}},
            "addressType": "IPv4", "ports": [{"port": port}],
        }));
        Arc::new(KeptSlice::of(&slice.expect("a slice"), &mut Shared::default()))
    }

    #[test]
    fn slices_are_found_by_their_service() {
        let mut slices = Slices::default();
        let web = slice("web", "web-2", 1).service.clone();
        let names = |slices: &Slices| slices.of(&web).iter().map(|slice| slice.name.to_string()).collect::<Vec<_>>();
        assert!(slices.put(slice("web", "web-2", 1)));
        assert!(slices.put(slice("web", "web-1", 1)));
        assert!(slices.put(slice("db", "db-1", 1)));
        assert!(!slices.put(slice("web", "web-1", 1)), "the same again");
        assert!(slices.put(slice("web", "web-1", 2)));
        assert_eq!(names(&slices), ["web-1", "web-2"]);
        assert_eq!(slices.iter().count(), 3);
        assert!(!slices.remove(&web, "web-3"));
        assert!(slices.remove(&web, "web-1"));
        assert_eq!(names(&slices), ["web-2"]);
        assert!(slices.remove(&web, "web-2"));
        assert!(!slices.remove(&web, "web-2"));
        assert_eq!(names(&slices), [""; 0]);
    }
}
