//! Ranges of Service addresses, and the objects of addresses that are held.

use serde_json::{Value, json};

use stoker_control_plane::api::WriteOptions;

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

/// C5.12
#[tokio::test]
async fn the_api_server_is_a_service_of_the_first_address() {
    let lab = Lab::with_ranges("10.96.0.0/12,fd00:96::/112", "").await;
    let service = lab.get("", "services", "default", "kubernetes").await.unwrap();
    assert_eq!(service["metadata"]["labels"], json!({"component": "apiserver", "provider": "kubernetes"}));
    assert_eq!(service["spec"]["clusterIPs"], json!(["10.96.0.1"]));
    assert_eq!(service["spec"]["ipFamilyPolicy"], "SingleStack");
    let port = &service["spec"]["ports"][0];
    assert_eq!((&port["name"], &port["port"], &port["protocol"]), (&json!("https"), &json!(443), &json!("TCP")));
    let endpoints = lab.get("", "endpoints", "default", "kubernetes").await.unwrap();
    assert_eq!(endpoints["metadata"]["labels"]["endpointslice.kubernetes.io/skip-mirror"], "true");
    let subset = &endpoints["subsets"][0];
    assert_eq!((&subset["addresses"][0]["ip"], &subset["ports"][0]["port"]), (&json!("192.0.2.7"), &json!(6443)));
    let slice = lab.get("discovery.k8s.io", "endpointslices", "default", "kubernetes").await.unwrap();
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "kubernetes");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.7"]));
    assert_eq!((&slice["ports"][0]["name"], &slice["ports"][0]["port"]), (&json!("https"), &json!(6443)));
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

/// C5.12 C1.6
#[tokio::test]
async fn services_get_addresses_from_a_new_range_and_of_both_families() {
    let lab = Lab::with_ranges("10.96.0.0/30,fd00:96::/112", "10.244.0.0/16,fd00:244::/56").await;
    assert_eq!(lab.range("kubernetes").await["spec"]["cidrs"], json!(["10.96.0.0/30", "fd00:96::/112"]));
    let service = |name: &str, spec: Value| {
        let mut object =
            json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}});
        json_patch::merge(&mut object["spec"], &spec);
        object
    };
    let both =
        lab.create("", "services", "default", service("both", json!({"ipFamilyPolicy": "PreferDualStack"}))).await;
    assert_eq!(both["spec"]["clusterIPs"], json!(["10.96.0.2", "fd00:96::100"]));
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    lab.until("objects of both addresses", async || {
        lab.address("10.96.0.2").await.is_some() && lab.address("fd00:96::100").await.is_some()
    })
    .await;
    let slices = async || {
        let all = lab.list("discovery.k8s.io", "endpointslices", "default").await;
        let ours = all.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "both");
        let mut types: Vec<String> = ours.map(|slice| slice["addressType"].as_str().unwrap().to_owned()).collect();
        types.sort();
        types
    };
    lab.until("slices of both families", async || slices().await == ["IPv4", "IPv6"]).await;

    // Down to one family: the address, its object and its slices go.
    let single = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    lab.patch("", "services", "default", "both", "", single).await;
    let stored = lab.get("", "services", "default", "both").await.unwrap();
    assert_eq!(stored["spec"]["clusterIPs"], json!(["10.96.0.2"]));
    lab.until("the second address is free", async || {
        lab.address("fd00:96::100").await.is_none() && slices().await == ["IPv4"]
    })
    .await;

    // The range of IPv4 is full; another one comes and goes.
    let services = lab.cluster.objects("", "services");
    let more = || service("more", json!({"type": "ClusterIP"}));
    let full = services.create("default", more(), &WriteOptions::default()).await.unwrap_err();
    assert_eq!((full.code, full.message.contains("range is full")), (500, true), "{full:?}");
    lab.make_range("wider", "10.97.0.0/24").await;
    lab.until("the new range is used", async || {
        services.create("default", more(), &WriteOptions::default()).await.is_ok()
    })
    .await;
    let made = lab.get("", "services", "default", "more").await.unwrap();
    assert!(made["spec"]["clusterIP"].as_str().unwrap().starts_with("10.97.0."), "{made}");
    lab.delete("networking.k8s.io", "servicecidrs", "", "wider", None).await;
    let ready = async || lab.range("wider").await["status"]["conditions"][0].clone();
    lab.until("it waits for the Service", async || ready().await["reason"] == "Terminating").await;
    lab.delete("", "services", "default", "more", None).await;
    lab.until("it is gone", async || lab.range("wider").await.is_null()).await;

    // Nodes have a part of each pod network.
    lab.node("n1", "8").await;
    lab.node("n2", "8").await;
    let parts = async |name: &str| {
        lab.get("", "nodes", "", name).await.unwrap()["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default()
    };
    lab.until("both nodes have parts", async || parts("n1").await.len() == 2 && parts("n2").await.len() == 2).await;
    let (one, other) = (parts("n1").await, parts("n2").await);
    assert!(one[0].as_str().unwrap().ends_with("/24") && one[1].as_str().unwrap().ends_with("::/64"), "{one:?}");
    assert!(one[0] != other[0] && one[1] != other[1], "{one:?} {other:?}");
}
