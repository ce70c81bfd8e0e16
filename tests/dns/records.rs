//! Names of the cluster, as the Kubernetes DNS specification 1.1.0 has them.

use std::sync::Arc;

use stoker::dns::Upstream;
use stoker_model::service::{EndpointSlice, NamespacedName, ServiceChange};

use crate::lab::{Lab, SERVER, SERVER6};

pub(crate) fn service(namespace: &str, name: &str, spec: &str) -> ServiceChange {
    let json = format!(r#"{{"metadata":{{"namespace":"{namespace}","name":"{name}"}},"spec":{spec}}}"#);
    ServiceChange::Service(Arc::new(serde_json::from_str(&json).unwrap()))
}

fn slice(namespace: &str, of: &str, endpoints: &str) -> ServiceChange {
    let json = format!(
        r#"{{"metadata":{{"namespace":"{namespace}","name":"{of}-1","labels":{{"kubernetes.io/service-name":"{of}"}}}},
        "addressType":"IPv4","ports":[{{"name":"sql","port":5432,"protocol":"TCP"}}],"endpoints":{endpoints}}}"#
    );
    serde_json::from_str::<EndpointSlice>(&json).unwrap().into()
}

const WEB: &str = r#"{"type":"ClusterIP","clusterIP":"10.96.1.1","clusterIPs":["10.96.1.1","fd00:10:96::1:1"],
    "ports":[{"name":"http","port":80,"protocol":"TCP"},{"name":"quic","port":443,"protocol":"UDP"}]}"#;
const HEADLESS: &str = r#"{"type":"ClusterIP","clusterIP":"None","ports":[{"name":"sql","port":5432}]}"#;

fn shop() -> Vec<ServiceChange> {
    vec![
        service("shop", "web", WEB),
        service("shop", "db", HEADLESS),
        slice(
            "shop",
            "db",
            r#"[{"addresses":["10.244.0.1"],"hostname":"db-0","conditions":{"ready":true}},
                {"addresses":["10.244.0.2"],"conditions":{"ready":true}},
                {"addresses":["10.244.0.3"],"hostname":"db-2","conditions":{"ready":false}}]"#,
        ),
        service("shop", "inside", r#"{"type":"ExternalName","externalName":"Web.Shop.svc.cluster.local"}"#),
        ServiceChange::Complete,
    ]
}

/// The header line and the counts, like `NOERROR aa 1 0 1`.
fn status(output: &str) -> String {
    let after = |mark: &str| output.split(mark).nth(1).unwrap_or_default().split([',', ';', '\n']).next().unwrap();
    format!("{} {} {}", after("status: "), after("flags: "), after("ANSWER: "))
}

#[test]
fn services_endpoints_ports_pods_and_addresses_have_their_records() {
    let lab = Lab::new();
    let server = lab.start_with(Upstream::None);
    let before = lab.dig("web.shop.svc.cluster.local");
    assert!(status(&before).starts_with("SERVFAIL"), "nothing is known yet: {before}");
    server.tell(shop());
    lab.eventually("web.shop.svc.cluster.local", &["10.96.1.1"]);
    for (question, expected) in [
        ("dns-version.cluster.local TXT", vec!["\"1.1.0\""]),
        ("web.shop.svc.cluster.local AAAA", vec!["fd00:10:96::1:1"]),
        ("_http._tcp.web.shop.svc.cluster.local SRV", vec!["0 100 80 web.shop.svc.cluster.local."]),
        ("_quic._udp.web.shop.svc.cluster.local SRV", vec!["0 100 443 web.shop.svc.cluster.local."]),
        ("-x 10.96.1.1", vec!["web.shop.svc.cluster.local."]),
        ("-x fd00:10:96::1:1", vec!["web.shop.svc.cluster.local."]),
        ("db.shop.svc.cluster.local", vec!["10.244.0.1", "10.244.0.2"]),
        ("db-0.db.shop.svc.cluster.local", vec!["10.244.0.1"]),
        ("10-244-0-2.db.shop.svc.cluster.local", vec!["10.244.0.2"]),
        ("db-2.db.shop.svc.cluster.local", vec![]),
        (
            "_sql._tcp.db.shop.svc.cluster.local SRV",
            vec!["0 100 5432 10-244-0-2.db.shop.svc.cluster.local.", "0 100 5432 db-0.db.shop.svc.cluster.local."],
        ),
        ("-x 10.244.0.1", vec!["db-0.db.shop.svc.cluster.local."]),
        ("inside.shop.svc.cluster.local CNAME", vec!["web.shop.svc.cluster.local."]),
        ("inside.shop.svc.cluster.local", vec!["10.96.1.1", "web.shop.svc.cluster.local."]),
        ("10-0-0-7.shop.pod.cluster.local", vec!["10.0.0.7"]),
        ("fd00--7.shop.pod.cluster.local AAAA", vec!["fd00::7"]),
        ("cluster.local NS", vec!["ns.dns.cluster.local."]),
        ("ns.dns.cluster.local", vec![SERVER]),
    ] {
        assert_eq!(lab.short(question), expected, "{question}");
    }
    let srv = lab.dig("_sql._tcp.db.shop.svc.cluster.local SRV");
    assert!(srv.contains("db-0.db.shop.svc.cluster.local. 5 IN A 10.244.0.1"), "the targets' addresses: {srv}");
    assert_eq!(lab.dig_at(SERVER6, "+short web.shop.svc.cluster.local").trim(), "10.96.1.1");
    // What changes is answered at once, cached or not.
    server.tell([slice("shop", "db", r#"[{"addresses":["10.244.0.9"]}]"#)]);
    lab.eventually("db.shop.svc.cluster.local", &["10.244.0.9"]);
    server.tell([ServiceChange::ServiceGone(NamespacedName { namespace: "shop".into(), name: "web".into() })]);
    lab.eventually("web.shop.svc.cluster.local", &[]);
}

/// What upstream's conformance tests ask (`test/e2e/network/dns.go`), as they ask it: by dig with the search list of a pod, over UDP and
/// TCP. And by the resolver of libc, as other programs do.
#[test]
fn what_the_conformance_tests_ask_is_answered() {
    let lab = Lab::new();
    let server = lab.start_with(Upstream::None);
    lab.resolve_as_in_a_pod("dns-1");
    let cluster_ip = |last: u8, port: &str| {
        let ports = format!(r#"[{{"name":"{port}","port":80,"protocol":"TCP"}}]"#);
        format!(
            r#"{{"type":"ClusterIP","clusterIP":"10.96.2.{last}","clusterIPs":["10.96.2.{last}"],"ports":{ports}}}"#
        )
    };
    let headless = r#"{"type":"ClusterIP","clusterIP":"None","ports":[{"name":"http","port":80,"protocol":"TCP"}]}"#;
    let http = |of: &str, endpoint: &str| {
        let json = format!(
            r#"{{"metadata":{{"namespace":"dns-1","name":"{of}-1","labels":{{"kubernetes.io/service-name":"{of}"}}}},
            "addressType":"IPv4","ports":[{{"name":"http","port":80,"protocol":"TCP"}}],"endpoints":[{endpoint}]}}"#
        );
        serde_json::from_str::<EndpointSlice>(&json).unwrap().into()
    };
    let external = |name: &str| {
        service("dns-1", "dns-test-service-3", &format!(r#"{{"type":"ExternalName","externalName":"{name}"}}"#))
    };
    server.tell([
        service("default", "kubernetes", &cluster_ip(1, "https")),
        service("dns-1", "dns-test-service", headless),
        http("dns-test-service", r#"{"addresses":["10.244.0.5"]}"#),
        service("dns-1", "test-service-2", &cluster_ip(2, "http")),
        http("test-service-2", r#"{"addresses":["10.244.0.5"]}"#),
        service("dns-1", "dns-test-service-2", headless),
        http("dns-test-service-2", r#"{"addresses":["10.244.0.6"],"hostname":"dns-querier-2"}"#),
        external("foo.example.com"),
        service("dns-1", "1kubernetes", &cluster_ip(4, "")),
        ServiceChange::Complete,
    ]);
    lab.eventually("kubernetes.default.svc.cluster.local", &["10.96.2.1"]);
    for (question, expected) in [
        ("kubernetes.default.svc.cluster.local A", "10.96.2.1"),
        ("dns-test-service.dns-1.svc.cluster.local A", "10.244.0.5"),
        (
            "_http._tcp.dns-test-service.dns-1.svc.cluster.local SRV",
            "10-244-0-5.dns-test-service.dns-1.svc.cluster.local.",
        ),
        ("_http._tcp.test-service-2.dns-1.svc.cluster.local SRV", "0 100 80 test-service-2.dns-1.svc.cluster.local."),
        ("2.2.96.10.in-addr.arpa. PTR", "test-service-2.dns-1.svc.cluster.local."),
        ("dns-test-service A", "10.244.0.5"),
        ("dns-test-service.dns-1 A", "10.244.0.5"),
        ("dns-test-service.dns-1.svc A", "10.244.0.5"),
        ("_http._tcp.dns-test-service.dns-1.svc SRV", "10-244-0-5.dns-test-service.dns-1.svc.cluster.local."),
        ("_http._tcp.test-service-2.dns-1.svc SRV", "0 100 80 test-service-2.dns-1.svc.cluster.local."),
        ("dns-querier-2.dns-test-service-2.dns-1.svc.cluster.local A", "10.244.0.6"),
        ("dns-test-service-2.dns-1.svc.cluster.local A", "10.244.0.6"),
        ("1kubernetes.dns-1.svc.cluster.local A", "10.96.2.4"),
    ] {
        for transport in ["+notcp", "+tcp"] {
            let answer = lab.output(&format!("dig {transport} +noall +answer +search {question}"));
            assert!(answer.trim().ends_with(expected), "{transport} {question}: {answer:?}");
        }
    }
    for (name, ip) in
        [("dns-test-service", "10.244.0.5"), ("test-service-2.dns-1", "10.96.2.2"), ("kubernetes.default", "10.96.2.1")]
    {
        let found = lab.output(&format!("getent hosts {name}"));
        assert!(found.starts_with(ip), "libc finds {name}: {found:?}");
    }
    let alias = "dns-test-service-3.dns-1.svc.cluster.local";
    assert_eq!(lab.short(&format!("{alias} CNAME")), ["foo.example.com."]);
    server.tell([external("bar.example.com")]);
    lab.eventually(&format!("{alias} CNAME"), &["bar.example.com."]);
    server.tell([service("dns-1", "dns-test-service-3", &cluster_ip(3, "http"))]);
    lab.eventually(&format!("{alias} A"), &["10.96.2.3"]);
}

#[test]
fn names_that_do_not_exist_differ_from_records_that_do_not() {
    let lab = Lab::new();
    let server = lab.start_with(Upstream::None);
    server.tell(shop());
    lab.eventually("web.shop.svc.cluster.local", &["10.96.1.1"]);
    for (question, expected) in [
        ("web.shop.svc.cluster.local A", "NOERROR qr aa rd ra 1"),
        ("web.shop.svc.cluster.local MX", "NOERROR qr aa rd ra 0"),
        ("db.shop.svc.cluster.local AAAA", "NOERROR qr aa rd ra 0"),
        ("shop.svc.cluster.local A", "NOERROR qr aa rd ra 0"),
        ("svc.cluster.local A", "NOERROR qr aa rd ra 0"),
        ("nobody.shop.svc.cluster.local A", "NXDOMAIN qr aa rd ra 0"),
        ("web.shop.svc.cluster.local.shop.svc.cluster.local A", "NXDOMAIN qr aa rd ra 0"),
        ("example.org.svc.cluster.local A", "NXDOMAIN qr aa rd ra 0"),
        ("example.org.cluster.local A", "NXDOMAIN qr aa rd ra 0"),
        ("example.org A", "REFUSED qr rd ra 0"),
        ("cluster.local AXFR", "REFUSED qr rd ra 0"),
        ("web.shop.svc.cluster.local CH TXT", "REFUSED qr rd ra 0"),
    ] {
        let question = if question.contains("AXFR") { format!("+notcp {question}") } else { question.to_owned() };
        let output = lab.dig(&question);
        if question.contains("AXFR") {
            // dig insists on a stream for it.
            assert!(output.contains("failed") || output.contains("REFUSED"), "{output}");
            continue;
        }
        assert_eq!(status(&output), expected, "{question}\n{output}");
        let has_soa = output.contains("SOA ns.dns.cluster.local. hostmaster.cluster.local.");
        assert_eq!(has_soa, expected.contains("aa") && expected.ends_with('0'), "{output}");
    }
    // The search list of a pod leads to the name.
    let search = "+search +ndots=5 +domain=shop.svc.cluster.local +short web";
    assert_eq!(lab.dig(search).trim(), "10.96.1.1");
}

#[test]
fn transports_limits_case_and_versions() {
    let lab = Lab::new();
    let server = lab.start_with(Upstream::None);
    let many: Vec<String> = (0..100).map(|last| format!(r#"{{"addresses":["10.244.9.{last}"]}}"#)).collect();
    server.tell(shop());
    server.tell([service("shop", "many", HEADLESS), slice("shop", "many", &format!("[{}]", many.join(",")))]);
    lab.eventually("_sql._tcp.nobody.svc.cluster.local", &[]);
    lab.eventually("+tcp db-0.db.shop.svc.cluster.local", &["10.244.0.1"]);
    let plain = lab.dig("+noedns +ignore many.shop.svc.cluster.local");
    assert!(plain.contains("flags: qr aa tc rd ra") && status(&plain).ends_with(" 29"), "{plain}");
    let edns = lab.dig("+bufsize=4096 +ignore many.shop.svc.cluster.local");
    assert!(edns.contains("flags: qr aa tc rd ra") && edns.contains("udp: 1232"), "{edns}");
    assert_eq!(lab.short("many.shop.svc.cluster.local").len(), 100, "dig asks again on a stream");
    assert_eq!(lab.short("+tcp many.shop.svc.cluster.local").len(), 100);
    let first = |lab: &Lab| lab.dig("+tcp +short many.shop.svc.cluster.local").lines().next().unwrap().to_owned();
    assert_ne!(first(&lab), first(&lab), "addresses take turns");
    let case = lab.dig("WeB.sHoP.svc.cluster.LOCAL");
    assert!(case.contains("WeB.sHoP.svc.cluster.LOCAL. 5 IN A 10.96.1.1"), "{case}");
    let version = lab.dig("+edns=1 +noednsnegotiation web.shop.svc.cluster.local");
    assert!(status(&version).starts_with("BADVERS"), "{version}");
    let metrics = lab.output(&format!("curl -s http://{SERVER}:9153/metrics"));
    for line in [
        "stoker_dns_requests_total{proto=\"udp\"}",
        "stoker_dns_responses_total{rcode=\"NOERROR\"}",
        "stoker_dns_cache_entries",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert_eq!(lab.output(&format!("curl -s http://{SERVER}:9153/ready")), "OK");
}

#[test]
fn the_address_is_ours_until_it_is_cleaned_up() {
    let lab = Lab::new();
    drop(lab.start_with(Upstream::None));
    let routes = |lab: &Lab| lab.output("ip route show table local") + &lab.output("ip -6 route show table local");
    assert!(routes(&lab).contains("local 10.96.0.10 dev lo") && routes(&lab).contains("local fd00:10:96::a dev lo"));
    // A restart finds it and goes on.
    drop(lab.start_with(Upstream::None));
    lab.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(stoker::dns::cleanup()).unwrap();
    })
    .join()
    .unwrap();
    assert!(!routes(&lab).contains("10.96") && !routes(&lab).contains("fd00"), "{}", routes(&lab));
    assert!(routes(&lab).contains("127.0.0.1"), "others' routes stay");
}
