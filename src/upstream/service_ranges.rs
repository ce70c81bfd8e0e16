//! The ranges that cluster IPs come from, as the cluster's ServiceCIDRs tell them (B1.1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stoker_model::service::ServiceCidr;
use tokio::sync::watch;

use super::client::ApiServer;
use super::watch::{Change, Sink, Watchable, Watched, run};

/// Watches ServiceCIDRs and tells all their ranges, once the list is complete; ends when nobody listens any more. A server
/// that does not know them has told nothing.
pub async fn watch_service_ranges(api: ApiServer, ranges: watch::Sender<Arc<BTreeSet<String>>>) {
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    let watched = Watched { path, fields: String::new(), labels: String::new() };
    run(&api, &watched, &mut RangeSink { known: BTreeMap::new(), listed: false, ranges }).await;
}

impl Watchable for ServiceCidr {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

struct RangeSink {
    known: BTreeMap<Arc<str>, Vec<String>>,
    listed: bool,
    ranges: watch::Sender<Arc<BTreeSet<String>>>,
}

impl Sink<ServiceCidr> for RangeSink {
    async fn take(&mut self, change: Change<ServiceCidr>) -> bool {
        self.apply(change);
        !self.ranges.is_closed()
    }
}

impl RangeSink {
    fn apply(&mut self, change: Change<ServiceCidr>) {
        match change {
            Change::Listing => {
                self.known.clear();
                self.listed = false;
            }
            Change::Present(cidr) => _ = self.known.insert(cidr.metadata.name, cidr.spec.cidrs),
            Change::Gone(cidr) => _ = self.known.remove(&cidr.metadata.name),
            Change::Unreadable { meta, gone: true } => _ = self.known.remove(meta.name.as_str()),
            Change::Unreadable { meta, gone: false } => {
                tracing::warn!(
                    name = meta.name,
                    "a ServiceCIDR cannot be read: addresses of its ranges are not dropped"
                );
            }
            Change::Listed => self.listed = true,
        }
        if self.listed {
            let all: BTreeSet<String> = self.known.values().flatten().cloned().collect();
            self.ranges.send_if_modified(|ranges| {
                let modified = **ranges != all;
                if modified {
                    *ranges = Arc::new(all);
                }
                modified
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidr: &str) -> Change<ServiceCidr> {
        let object = serde_json::json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
        Change::Present(serde_json::from_value(object).expect("a ServiceCIDR"))
    }

    /// B1.1
    #[test]
    fn ranges_are_told_when_all_are_known() {
        let (ranges, told) = watch::channel(Arc::default());
        let mut sink = RangeSink { known: BTreeMap::new(), listed: false, ranges };
        let told = || told.borrow().iter().cloned().collect::<Vec<_>>();
        sink.apply(Change::Listing);
        sink.apply(range("kubernetes", "10.96.0.0/16"));
        assert_eq!(told(), [""; 0], "the list is not over");
        sink.apply(Change::Listed);
        sink.apply(range("more", "10.97.0.0/16"));
        assert_eq!(told(), ["10.96.0.0/16", "10.97.0.0/16"]);
        sink.apply(Change::Listing);
        assert_eq!(told().len(), 2, "a list that starts over takes nothing back");
        sink.apply(range("more", "10.97.0.0/16"));
        sink.apply(Change::Listed);
        assert_eq!(told(), ["10.97.0.0/16"]);
    }
}
