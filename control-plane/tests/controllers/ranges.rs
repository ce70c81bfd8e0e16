//! Ranges of Service addresses, and the objects of addresses that are held.

use serde_json::{Value, json};

use super::Lab;

impl Lab {
    async fn address(&self, name: &str) -> Option<Value> {
        self.get("networking.k8s.io", "ipaddresses", "", name).await
    }

    async fn range(&self, name: &str) -> Value {
        self.get("networking.k8s.io", "servicecidrs", "", name).await.unwrap_or_default()
    }

    async fn make_range(&self, name: &str, cidr: &str) {
        let object = json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
        self.create("networking.k8s.io", "servicecidrs", "", object).await;
    }
}

#[tokio::test]
async fn an_address_has_its_object_as_long_as_a_service_holds_it() {
    // C5.12
    let lab = Lab::start().await;
    lab.until("the address of kubernetes", async || lab.address("10.96.0.1").await.is_some()).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}});
    lab.create("", "services", "default", service).await;
    lab.until("the address of web", async || lab.address("10.96.0.9").await.is_some()).await;
    let address = lab.address("10.96.0.9").await.unwrap();
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    assert_eq!(address["metadata"]["labels"], labels);
    let parent = json!({"resource": "services", "namespace": "default", "name": "web"});
    assert_eq!(address["spec"]["parentRef"], parent);

    lab.delete("networking.k8s.io", "ipaddresses", "", "10.96.0.9", None).await;
    lab.until("it is made again", async || lab.address("10.96.0.9").await.is_some()).await;
    lab.delete("", "services", "default", "web", None).await;
    lab.until("it is gone with the Service", async || lab.address("10.96.0.9").await.is_none()).await;
}

#[tokio::test]
async fn a_range_leaves_when_its_addresses_are_free() {
    // C7.15
    let lab = Lab::start().await;
    let ready = async |name: &str| lab.range(name).await["status"]["conditions"][0].clone();
    lab.until("the default range is ready", async || ready("kubernetes").await["status"] == "True").await;
    assert_eq!(lab.range("kubernetes").await["spec"]["cidrs"], json!(["10.96.0.0/12"]));
    assert_eq!(ready("kubernetes").await["message"], "Kubernetes Service CIDR is ready");

    lab.make_range("more", "192.168.5.0/24").await;
    lab.until("the other one, too", async || ready("more").await["status"] == "True").await;
    let holder =
        json!({"metadata": {"name": "192.168.5.7"}, "spec": {"parentRef": {"resource": "gateways", "name": "a"}}});
    lab.create("networking.k8s.io", "ipaddresses", "", holder).await;
    lab.delete("networking.k8s.io", "servicecidrs", "", "more", None).await;
    lab.until("it waits", async || ready("more").await["reason"] == "Terminating").await;
    assert_eq!(lab.range("more").await["metadata"]["finalizers"], json!(["networking.k8s.io/service-cidr-finalizer"]));
    lab.delete("networking.k8s.io", "ipaddresses", "", "192.168.5.7", None).await;
    lab.until("it is gone", async || lab.range("more").await.is_null()).await;
}
