//! The ranges of Service addresses as objects, and one IPAddress for each address that a Service holds (C5.12, C7.15).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::cidr::Cidr;
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use super::service_addresses::{ALLOCATOR, MANAGED_BY, ServiceAddresses, addresses_of, cidrs_of};
use crate::api::{DeleteOptions, ListOptions, WriteOptions};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

const GROUP: &str = "networking.k8s.io";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// Which Services hold an address: to look through all of them for each would cost more with each Service.
#[derive(Debug, Default)]
struct Holders(Mutex<BTreeMap<IpAddr, BTreeSet<Key>>>);

impl Holders {
    /// Takes in a change of a Service; returns the addresses that it concerns.
    fn note(&self, old: Option<&Value>, new: Option<&Value>) -> BTreeSet<IpAddr> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut concerned = BTreeSet::new();
        for (service, address) in old.into_iter().flat_map(|old| addresses_of(old).map(move |address| (old, address))) {
            if let Some(holders) = all.get_mut(&address) {
                holders.remove(&Key::of(service));
                if holders.is_empty() {
                    all.remove(&address);
                }
            }
            concerned.insert(address);
        }
        for (service, address) in new.into_iter().flat_map(|new| addresses_of(new).map(move |address| (new, address))) {
            all.entry(address).or_default().insert(Key::of(service));
            concerned.insert(address);
        }
        concerned
    }

    /// The first of them by name.
    fn of(&self, address: IpAddr) -> Option<Key> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&address)?.first().cloned()
    }
}

#[derive(Clone)]
struct Ranges {
    ranges: Arc<Informer>,
    addresses: Arc<Informer>,
    holders: Arc<Holders>,
    given: Arc<ServiceAddresses>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = Ranges {
        ranges: context.informers.of(GROUP, "servicecidrs"),
        addresses: context.informers.of(GROUP, "ipaddresses"),
        holders: Arc::default(),
        given: Arc::clone(&context.config.addresses),
    };
    let (of_ranges, of_addresses) = (Queue::default(), Queue::default());
    let (queue, given, all) = (of_ranges.clone(), Arc::clone(&controller.given), Arc::downgrade(&controller.ranges));
    controller.ranges.on_change(move |_, new| {
        if let Some(all) = all.upgrade() {
            given.set_ranges(all.list("").iter().map(AsRef::as_ref));
        }
        if let Some(range) = new {
            queue.add(Key::of(range));
        }
    });
    let (queue, holders) = (of_addresses.clone(), Arc::clone(&controller.holders));
    context.informers.of("", "services").on_change(move |old, new| {
        for address in holders.note(old.map(AsRef::as_ref), new.map(AsRef::as_ref)) {
            queue.add(Key::new("", &address.to_string()));
        }
    });
    let (queue, all, ranges) = (of_addresses.clone(), controller.ranges.clone(), of_ranges.clone());
    let given = Arc::clone(&controller.given);
    controller.addresses.on_change(move |old, new| {
        if let Some(address) = new.or(old) {
            given.note_address(address, new.is_some());
        }
        if let Some(address) = new.or(old) {
            queue.add(Key::of(address));
        }
        if new.is_none() {
            all.list("").iter().filter(|range| is_being_deleted(range)).for_each(|range| ranges.add(Key::of(range)));
        }
    });
    Box::new(move |context| {
        let ranges = controller.clone();
        of_ranges.work("service-cidrs", 1, &context.stop, move |key| {
            let controller = ranges.clone();
            async move { controller.settle_range(&key.name).await }
        });
        of_addresses.work("ip-addresses", 1, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.settle_address(&key.name).await }
        });
    })
}

impl Ranges {
    /// Ready, with the finalizer; on its way out only when no address in it is held.
    async fn settle_range(&self, name: &str) -> Result<Option<Duration>, StatusError> {
        let Some(range) = self.ranges.get("", name) else { return Ok(None) };
        let leaves = is_being_deleted(&range);
        let held = leaves && self.is_held(&range).await?;
        let has_finalizer = items(&range["metadata"], "finalizers").any(|finalizer| finalizer == FINALIZER);
        if has_finalizer == (leaves && !held) {
            let change = |object: &mut Value| {
                let finalizers = &mut object["metadata"]["finalizers"];
                let mut all = finalizers.as_array().cloned().unwrap_or_default();
                all.retain(|finalizer| finalizer != FINALIZER);
                if !leaves {
                    all.push(FINALIZER.into());
                }
                *finalizers = all.into();
                true
            };
            if let Err(error) = self.ranges.objects.modify("", name, "", change).await
                && !error.is_not_found()
            {
                return Err(error);
            }
        }
        if leaves && !held {
            return Ok(None);
        }
        let (status, reason, message) = if held {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            ("False", "Terminating", message)
        } else {
            ("True", "", "Kubernetes Service CIDR is ready")
        };
        let change = |object: &mut Value| {
            let conditions = &mut object["status"]["conditions"];
            if conditions[0]["status"] == status {
                return false;
            }
            *conditions = json!([{ "type": "Ready", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": clock::now().to_string() }]);
            true
        };
        match self.ranges.objects.modify("", name, "status", change).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }

    /// Whether an address in this range, and in no other that stays, is held. Asked of the store, for one may just have come.
    async fn is_held(&self, range: &Value) -> Result<bool, StatusError> {
        let own = cidrs_of(range);
        let others = self.ranges.list("");
        let others: Vec<Cidr> =
            others.iter().filter(|other| !is_being_deleted(other)).flat_map(|other| cidrs_of(other)).collect();
        if self.given.is_held_only_in(&own, &others) {
            return Ok(true);
        }
        let inside = |ranges: &[Cidr], address: IpAddr| ranges.iter().any(|range| range.contains(address));
        let addresses = self.addresses.objects.list("", &ListOptions::default()).await?.items;
        let mut addresses = addresses.iter().filter_map(|address| text(&address["metadata"], "name").parse().ok());
        Ok(addresses.any(|address| inside(&own, address) && !inside(&others, address)))
    }

    /// An address that a Service holds has its object; one that no Service holds has none, if it was ours.
    async fn settle_address(&self, name: &str) -> Result<Option<Duration>, StatusError> {
        let Ok(address) = name.parse::<IpAddr>() else { return Ok(None) };
        let parent = self
            .holders
            .of(address)
            .map(|service| json!({ "resource": "services", "namespace": service.namespace, "name": service.name }));
        let known = self.addresses.get("", name);
        if let Some(known) = &known {
            let is_ours = known["metadata"]["labels"][MANAGED_BY] == ALLOCATOR;
            let fits = parent.as_ref().is_some_and(|parent| {
                ["resource", "namespace", "name"].iter().all(|key| known["spec"]["parentRef"][key] == parent[key])
            });
            if !is_ours || fits {
                return Ok(None);
            }
            match self.addresses.objects.delete("", name, &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        let Some(parent) = parent else { return Ok(None) };
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": { "name": name, "labels": { FAMILY: family, MANAGED_BY: ALLOCATOR } },
            "spec": { "parentRef": parent },
        });
        match self.addresses.objects.create("", object, &WriteOptions::default()).await {
            Err(error) if error.code != 409 => Err(error),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_held_until_its_last_service_goes() {
        let service = |name: &str, ips: &[&str]| json!({"metadata": {"namespace": "n", "name": name}, "spec": {"clusterIPs": ips}});
        let (a, b) = (service("a", &["10.96.0.1", "fd00::1"]), service("b", &["10.96.0.1"]));
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let holders = Holders::default();
        holders.note(None, Some(&b));
        assert_eq!(holders.note(None, Some(&a)), [ip("10.96.0.1"), ip("fd00::1")].into());
        assert_eq!(holders.of(ip("10.96.0.1")), Some(Key::new("n", "a")));
        let moved = service("a", &["10.96.0.2"]);
        assert_eq!(holders.note(Some(&a), Some(&moved)), [ip("10.96.0.1"), ip("10.96.0.2"), ip("fd00::1")].into());
        assert_eq!(holders.of(ip("10.96.0.1")), Some(Key::new("n", "b")));
        assert_eq!(holders.of(ip("fd00::1")), None);
        holders.note(Some(&b), None);
        assert_eq!(holders.of(ip("10.96.0.1")), None);
    }
}
