//! What routes follow from which Services and slices.

use serde_json::{Value, json};
use stoker_model::service::{EndpointSlice, Shared};

use super::*;

fn service(spec: Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "type": "ClusterIP", "ports": [{"port": 80}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        match key.as_str() {
            "status" | "metadata" => object[key] = value.clone(),
            _ => object["spec"][key] = value.clone(),
        }
    }
    serde_json::from_value(object).unwrap()
}

fn slice_named(name: &str, family: &str, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family, "endpoints": endpoints, "ports": [{"port": 8080}],
    }))
    .unwrap()
}

fn slice(endpoints: Value) -> EndpointSlice {
    slice_named("web-1", "IPv4", endpoints)
}

fn node() -> NodeTopology {
    NodeTopology { name: "here".into(), zone: Some("zone-a".into()), ips: vec![[192, 0, 2, 1].into()] }
}

/// An endpoint that is ready, or not, on a node.
fn at(ip: u8, node: &str, conditions: Value) -> Value {
    json!({"addresses": [format!("10.244.0.{ip}")], "nodeName": node, "conditions": conditions})
}

fn kept(slices: &[EndpointSlice]) -> Vec<Arc<KeptSlice>> {
    slices.iter().map(|slice| Arc::new(KeptSlice::of(slice, &mut Shared::default()))).collect()
}

fn compile(spec: Value, slices: &[EndpointSlice]) -> ServiceRoutes {
    routes(&service(spec), &kept(slices), &node())
}

/// The last bytes of the backends of the first frontend, and of those kept for outside traffic.
fn served(routes: &ServiceRoutes, frontend: usize) -> (Vec<u8>, Vec<u8>) {
    let last = |backends: Backends| {
        let byte = |backend: Backend| match backend.ip {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        backends.iter().map(byte).collect()
    };
    let (all, local) = routes.paths[frontend].route.backends();
    (last(all), last(local))
}

/// B1.6
#[test]
fn some_services_have_no_routes() {
    // B1.1: also where somebody else needs those that a proxy does not ask for.
    let ready = [slice(json!([at(1, "here", json!({}))]))];
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"type": "ExternalName", "clusterIP": "", "clusterIPs": []}),
        json!({"type": "ExternalName"}),
        json!({"metadata": {"name": "web", "labels": {"service.kubernetes.io/service-proxy-name": "other"}}}),
    ] {
        assert_eq!(*compile(spec.clone(), &ready).paths, [], "{spec}");
    }
    assert_eq!(compile(json!({}), &ready).paths.len(), 1);
}

/// B1.23: nil conditions, several slices, duplicates, only the first address, FQDN, ports without a number.
#[test]
fn slices_are_read_as_kube_proxy_does() {
    let nil = slice(
        json!([at(1, "x", json!({})), at(2, "x", json!({"ready": false})), {"addresses": ["10.244.0.3", "10.244.0.4"]}]),
    );
    assert_eq!(served(&compile(json!({}), &[nil]), 0).0, [1, 3]);
    let gone = json!({"ready": false, "serving": true, "terminating": true});
    let a = slice_named("web-1", "IPv4", json!([at(1, "x", gone.clone()), at(2, "x", json!({}))]));
    let b = slice_named("web-2", "IPv4", json!([at(1, "x", json!({})), at(2, "x", gone)]));
    assert_eq!(served(&compile(json!({}), &[a.clone(), b.clone()]), 0).0, [1, 2]);
    assert_eq!(served(&compile(json!({}), &[b, a]), 0).0, [1, 2]);
    let named = slice_named("web-3", "FQDN", json!([{"addresses": ["web.example"]}]));
    assert_eq!(compile(json!({}), &[named]).paths[0].route, Route::Reject);
    let mut portless = slice(json!([at(1, "x", json!({}))]));
    portless.ports[0].port = None;
    assert_eq!(compile(json!({}), &[portless]).paths[0].route, Route::Reject);
    let going = |conditions: Value| served(&compile(json!({}), &[slice(json!([at(1, "x", conditions)]))]), 0).0;
    assert_eq!(going(json!({"ready": false, "terminating": true})), [1], "nobody said that it does not serve");
    assert_eq!(going(json!({"ready": false, "serving": true})), [0_u8; 0], "nobody said that it terminates");
}

/// B1.22: terminating ones serve when nobody is ready, for each policy by itself.
#[test]
fn terminating_endpoints_are_the_last_resort() {
    let going = json!({"ready": false, "serving": true, "terminating": true});
    let broken = json!({"ready": false, "serving": false, "terminating": true});
    let none_ready = [slice(json!([at(1, "here", going.clone()), at(2, "x", broken.clone())]))];
    assert_eq!(served(&compile(json!({}), &none_ready), 0).0, [1]);
    let mixed = [slice(json!([at(1, "here", going), at(2, "x", json!({})), at(3, "here", broken)]))];
    assert_eq!(served(&compile(json!({}), &mixed), 0).0, [2]);
    let local =
        json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]});
    assert_eq!(served(&compile(local, &mixed), 1), (vec![2], vec![1]));
    assert_eq!(served(&compile(json!({"internalTrafficPolicy": "Local"}), &mixed), 0).0, [1]);
}

/// B1.9, B1.12
#[test]
fn without_endpoints_traffic_is_refused_or_dropped() {
    let elsewhere = [slice(json!([at(1, "x", json!({}))]))];
    assert_eq!(compile(json!({"internalTrafficPolicy": "Local"}), &elsewhere).paths[0].route, Route::Drop);
    assert_eq!(compile(json!({"internalTrafficPolicy": "Local"}), &[]).paths[0].route, Route::Reject);
    assert_eq!(compile(json!({}), &[]).paths[0].route, Route::Reject);
}

/// B1.25
#[test]
fn topology_hints_count_only_if_all_have_them_and_one_fits() {
    let hinted = |ip: u8, nodes: &[&str], zones: &[&str]| {
        let names = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        json!({"addresses": [format!("10.244.0.{ip}")], "hints": {"forNodes": names(nodes), "forZones": names(zones)}})
    };
    let run = |endpoints: Value| served(&compile(json!({}), &[slice(endpoints)]), 0).0;
    assert_eq!(run(json!([hinted(1, &[], &["zone-a"]), hinted(2, &[], &["zone-b"])])), [1]);
    assert_eq!(run(json!([hinted(1, &[], &["zone-c"]), hinted(2, &[], &["zone-b"])])), [1, 2]);
    assert_eq!(run(json!([hinted(1, &[], &["zone-a"]), hinted(2, &[], &[])])), [1, 2]);
    assert_eq!(run(json!([hinted(1, &["x"], &["zone-a"]), hinted(2, &["here"], &["zone-b"])])), [2]);
    assert_eq!(run(json!([hinted(1, &["x"], &["zone-a"]), hinted(2, &["y"], &["zone-b"])])), [1]);
    let mut going = hinted(1, &[], &["zone-a"]);
    going["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    let mut away = hinted(2, &[], &["zone-b"]);
    away["conditions"] = going["conditions"].clone();
    assert_eq!(run(json!([going, away])), [1, 2], "the fall-back ignores hints");
}

/// B1.18: each family by itself.
#[test]
fn families_are_kept_apart() {
    let spec = json!({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "externalIPs": ["203.0.113.1", "2001:db8::1"]});
    let v6 = slice_named("web-6", "IPv6", json!([{"addresses": ["fd00:244::9"]}]));
    let all = compile(spec, &[slice(json!([at(1, "x", json!({}))])), v6.clone()]);
    let frontends: Vec<String> = all.paths.iter().map(|path| path.frontend.to_string()).collect();
    assert_eq!(frontends, ["10.96.0.10:80/tcp", "203.0.113.1:80/tcp", "[fd00:96::10]:80/tcp", "[2001:db8::1]:80/tcp"]);
    assert_eq!(served(&all, 2).0, [9]);
    let single = compile(json!({"externalIPs": ["2001:db8::1"]}), &[v6]);
    assert_eq!(single.paths.len(), 1, "no IPv6 cluster IP, no IPv6");
}

#[test]
fn the_rest_of_a_service() {
    let endpoints =
        [slice(json!([at(1, "here", json!({})), at(2, "x", json!({})), at(3, "here", json!({"ready": false}))]))];
    let sticky = compile(json!({"sessionAffinity": "ClientIP"}), &endpoints);
    assert_eq!(sticky.paths[0].route.affinity_seconds(), Some(10800));
    assert_eq!(*sticky.hairpins, ["10.244.0.1".parse::<IpAddr>().unwrap(), "10.244.0.3".parse().unwrap()]);
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000});
    assert_eq!(compile(local, &endpoints).health_check, Some((31000, 1)));
}

#[test]
fn only_what_changed_is_compiled_again() {
    let mut model = Model::new(Arc::new(node()));
    let web = NamespacedName { namespace: "default".into(), name: "web".into() };
    let ready = || ServiceChange::from(slice(json!([at(1, "here", json!({}))])));
    model.apply(ServiceChange::Service(Arc::new(service(json!({})))));
    model.apply(ready());
    assert!(!model.is_complete());
    model.apply(ServiceChange::Complete);
    assert!(model.is_complete());
    assert_eq!(model.take_dirty(), BTreeSet::from([web.clone()]));
    assert_eq!(served(&model.routes(&web), 0).0, [1]);

    model.apply(ready());
    model.apply(ServiceChange::Service(Arc::new(service(json!({})))));
    assert!(model.take_dirty().is_empty(), "the same again");

    model.apply(ServiceChange::Restarting);
    assert!(!model.is_complete());
    model.apply(ServiceChange::Service(Arc::new(service(json!({})))));
    model.apply(ServiceChange::Complete);
    assert_eq!(model.take_dirty().len(), 1, "the slice did not come again");
    assert_eq!(model.routes(&web).paths[0].route, Route::Reject);

    model.set_node(Arc::new(NodeTopology { name: "here".into(), zone: None, ips: Vec::new() }));
    assert_eq!(model.take_dirty().len(), 1);
    model.apply(ServiceChange::ServiceGone(web.clone()));
    assert_eq!(model.take_dirty().len(), 1);
    assert_eq!(model.routes(&web), ServiceRoutes::default());
}

/// B1.7: ranges of one family, none within another, with the load balancer's own address where a node address is allowed.
#[test]
fn source_ranges_follow_upstream() {
    let ranges = |ranges: &[&str], externals: &[&str]| {
        let spec = json!({
            "type": "LoadBalancer", "loadBalancerSourceRanges": ranges, "externalIPs": externals,
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}},
        });
        let all = compile(spec, &[slice(json!([at(1, "here", json!({}))]))]);
        let ours = |path: &&Path| path.frontend.to_string() == "203.0.113.7:80/tcp";
        let path = all.paths.iter().find(ours).unwrap();
        path.allowed_sources.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&["10.0.0.0/8", " 10.1.0.0/16 ", "fd00::/8"], &[]), ["10.0.0.0/8"]);
    assert_eq!(ranges(&["10.0.0.0/8", "0.0.0.0/0"], &[]), [""; 0]);
    assert_eq!(ranges(&["fd00::/8"], &[]), [""; 0], "of the other family");
    assert_eq!(ranges(&["192.0.2.0/24"], &[]), ["192.0.2.0/24", "203.0.113.7/32"], "the node is 192.0.2.1");
    assert_eq!(ranges(&["10.0.0.0/8"], &["203.0.113.7"]), ["10.0.0.0/8"], "an external IP too");
}

/// What cannot be used is named, and no more.
#[test]
fn problems_are_named() {
    let text = |routes: &ServiceRoutes| routes.problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let fine = compile(json!({}), &[slice(json!([at(1, "here", json!({}))]))]);
    assert_eq!(text(&fine), [""; 0]);
    let bad = json!({"externalIPs": ["x"], "ports": [{"port": 80}, {"name": "odd", "port": 81, "protocol": "DCCP"}]});
    let wrong = slice(json!([{"addresses": ["fd00::1"]}, {"addresses": ["010.244.0.9"]}]));
    let routes = compile(bad, &[wrong]);
    assert_eq!(text(&routes).len(), 3, "{:?}", routes.problems);
    assert_eq!(served(&routes, 0).0, [9], "leading zeros are decimal, as upstream reads them");
    let mut zero = slice(json!([at(1, "here", json!({}))]));
    zero.ports[0].port = Some(0);
    assert_eq!(compile(json!({}), &[zero]).paths[0].route, Route::Reject, "port 0 is none (B1.23)");
}

/// More backends than there are slots: the first ones, and a word about it.
#[test]
fn no_backend_is_left_out_in_silence() {
    let many = |from: u32, count: u32| {
        let endpoint = |n: u32| json!({"addresses": [std::net::Ipv4Addr::from(0x0a00_0000 + n)], "nodeName": "here"});
        slice_named(&format!("web-{from}"), "IPv4", (from..from + count).map(endpoint).collect())
    };
    let routes = compile(json!({}), &[many(0, 40_000), many(40_000, 25_540)]);
    assert_eq!(served(&routes, 0).0.len(), MAX_BACKENDS);
    let expected = Problem::TooManyBackends { frontend: routes.paths[0].frontend, count: 65_540 };
    assert_eq!(*routes.problems, [expected]);
}

/// B1.24: whoever publishes them says so in the slice, and that is all that counts.
#[test]
fn endpoints_published_before_they_are_ready_are_used() {
    let published = [slice(json!([at(1, "x", json!({"ready": true, "serving": false}))]))];
    assert_eq!(served(&compile(json!({"publishNotReadyAddresses": true}), &published), 0).0, [1]);
}
