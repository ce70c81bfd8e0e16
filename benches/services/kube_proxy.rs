//! The same Services twice: as objects for us, and as nft text in the layout of kube-proxy's nftables mode, with its chains
//! for each Service (two endpoints need no chains of their own without affinity).

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use stoker::clock::Clock;
use stoker_model::service::{EndpointSlice, NamespacedName, Service, ServiceChange, Shared};

/// The cluster IP of one of our Services.
pub(crate) fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + number)
}

/// A Service of one port with these endpoints, as the watches bring it.
pub(crate) fn changes(number: u32, endpoints: &[Ipv4Addr]) -> [ServiceChange; 2] {
    let (name, ip) = (format!("service-{number}"), cluster_ip(number));
    let service = format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"bench"}},"spec":{{"type":"ClusterIP","clusterIP":"{ip}",
        "clusterIPs":["{ip}"],"ports":[{{"port":80,"protocol":"TCP"}}]}}}}"#
    );
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|ip| {
            format!(
                r#"{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},
                "nodeName":"other-node","zone":"zone-a"}}"#
            )
        })
        .collect();
    let slice = format!(
        r#"{{"metadata":{{"name":"{name}-abcde","namespace":"bench","labels":{{"kubernetes.io/service-name":"{name}",
        "endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io"}}}},"addressType":"IPv4",
        "endpoints":[{}],"ports":[{{"name":"","port":8080,"protocol":"TCP"}}]}}"#,
        endpoints.join(",")
    );
    let mut service: Service = serde_json::from_str(&service).expect("it is a Service");
    let slice: EndpointSlice = serde_json::from_str(&slice).expect("it is an EndpointSlice");
    service.spec.keep_once();
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let key = &mut service.metadata.key;
    *key = NamespacedName { namespace: shared.name(&key.namespace), name: shared.name(&key.name) };
    [ServiceChange::Service(Arc::new(service)), ServiceChange::slice(&slice, &mut shared)]
}

/// What the watches share.
static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);

const TABLE: &str = "add table ip kube-proxy
add chain ip kube-proxy services
add chain ip kube-proxy nat-output { type nat hook output priority -100; }
add rule ip kube-proxy nat-output jump services
add set ip kube-proxy cluster-ips { type ipv4_addr; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
";

fn one(number: u32, endpoints: u32, text: &mut String) {
    let chain = format!("service-ABCDEFGH-bench/service-{number}/tcp/");
    let ip = cluster_ip(number);
    let backends: Vec<String> =
        (0..endpoints).map(|n| format!("{n} : {} . 8080", Ipv4Addr::from(0x0a80_0000 + number * 10 + n))).collect();
    let _ = writeln!(text, "add chain ip kube-proxy {chain}");
    let _ = writeln!(
        text,
        "add rule ip kube-proxy {chain} meta l4proto tcp dnat ip addr . port to numgen random mod {endpoints} map {{ {} }}",
        backends.join(", ")
    );
    let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {ip} }}");
    let _ = writeln!(text, "add element ip kube-proxy service-ips {{ {ip} . tcp . 80 : goto {chain} }}");
}

/// How long `nft -f` takes for so many Services, the table being removed afterwards.
pub(crate) fn loaded(count: u32, endpoints: u32) -> (Duration, usize) {
    let mut text = TABLE.to_owned();
    (0..count).for_each(|number| one(number, endpoints, &mut text));
    let took = nft(&text);
    nft("delete table ip kube-proxy\n");
    (took, text.len())
}

/// How long `nft -f` takes for one more Service, as the median of some.
pub(crate) fn one_more(count: u32, endpoints: u32) -> Duration {
    let mut text = TABLE.to_owned();
    (0..count).for_each(|number| one(number, endpoints, &mut text));
    nft(&text);
    let mut times: Vec<Duration> = (count..count + 5)
        .map(|number| {
            let mut text = String::new();
            one(number, endpoints, &mut text);
            nft(&text)
        })
        .collect();
    nft("delete table ip kube-proxy\n");
    times.sort_unstable();
    times[2]
}

fn nft(text: &str) -> Duration {
    let begun = Clock.now().monotonic;
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft is installed");
    child.stdin.take().expect("it was piped").write_all(text.as_bytes()).expect("nft reads all of it");
    assert!(child.wait().is_ok_and(|status| status.success()), "nft takes kube-proxy's layout");
    Clock.now().monotonic - begun
}
