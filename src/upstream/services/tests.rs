//! What is told of Services and slices, and what variables pods get.

use super::*;

fn service(namespace: &str, name: &str, ip: &str, ports: &str) -> Service {
    serde_json::from_str(&format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}"}},"spec":{{"clusterIP":"{ip}","ports":{ports}}}}}"#
    ))
    .expect("a service")
}

fn sink() -> ServiceSink {
    let (changes, _) = mpsc::channel(1);
    let shared = Common::default();
    ServiceSink { shared, store: ServiceStore::default(), changes, seen: None, lists: Lists::default() }
}

fn slice_sink() -> SliceSink {
    let (changes, _) = mpsc::channel(1);
    let shared = Common::default();
    SliceSink { shared, known: HashSet::new(), seen: None, changes, lists: Lists::default() }
}

/// `s-1` of the namespace `a`, with this label for its Service.
fn slice(labels: &str) -> EndpointSlice {
    serde_json::from_str(&format!(
        r#"{{"metadata":{{"name":"s-1","namespace":"a","labels":{labels}}},"addressType":"IPv4","endpoints":[{{"addresses":["10.1.0.1"]}}]}}"#
    ))
    .expect("a slice")
}

/// `+ service` for a slice that is there, `- service` for one that is gone.
fn told(changes: Vec<ServiceChange>) -> Vec<String> {
    let told = changes.into_iter().map(|change| match change {
        ServiceChange::Slice(slice, _) => format!("+ {}/{}", slice.service.name, slice.name),
        ServiceChange::SliceGone(service, name) => format!("- {}/{name}", service.name),
        other => panic!("{other:?}"),
    });
    told.collect()
}

#[test]
fn a_slice_leaves_its_service_with_its_label() {
    // B1.1
    let of = |service: &str| slice(&format!(r#"{{"{SERVICE_NAME}":"{service}"}}"#));
    let mut sink = slice_sink();
    sink.apply(Change::Listing);
    assert_eq!(told(sink.apply(Change::Present(of("old")))), ["+ old/s-1"]);
    assert!(sink.apply(Change::Listed).is_empty());
    assert_eq!(told(sink.apply(Change::Present(of("old")))), ["+ old/s-1"], "it stays");
    assert_eq!(told(sink.apply(Change::Present(of("new")))), ["- old/s-1", "+ new/s-1"]);
    assert_eq!(told(sink.apply(Change::Present(slice("{}")))), ["- new/s-1"]);
    assert!(sink.apply(Change::Present(of(""))).is_empty(), "as without the label");
    assert!(sink.apply(Change::Gone(slice("{}"))).is_empty(), "it belonged to nobody");
    // Of one that goes, the server sends what it was before, or after a label was changed with it.
    sink.apply(Change::Present(of("new")));
    assert_eq!(told(sink.apply(Change::Gone(slice("{}")))), ["- new/s-1"]);
    // A list that starts over may show it elsewhere, too, or without a label.
    for (now, expected) in [("new", vec!["- old/s-1", "+ new/s-1"]), ("", vec!["- old/s-1"])] {
        sink.apply(Change::Present(of("old")));
        sink.apply(Change::Listing);
        assert_eq!(told(sink.apply(Change::Present(of(now)))), expected);
        assert!(sink.apply(Change::Listed).is_empty());
        sink.apply(Change::Gone(of(now)));
    }
}

fn listed(services: Vec<Service>) -> ServiceStore {
    let mut sink = sink();
    sink.apply(Change::Listing);
    for service in services {
        sink.apply(Change::Present(service));
    }
    sink.apply(Change::Listed);
    sink.store
}

#[test]
fn services_become_variables() {
    // A8.6, A8.8
    let web = r#"[{"name":"http","port":80,"protocol":"TCP"},{"name":"dns-udp","port":53,"protocol":"UDP"}]"#;
    let store = listed(vec![
        service("default", "kubernetes", "10.0.0.1", r#"[{"name":"https","port":443}]"#),
        service("shop", "web-front", "10.0.0.9", web),
        service("other", "db", "10.0.0.8", r#"[{"port":1}]"#),
        service("shop", "headless", "None", r#"[{"port":1}]"#),
        service("shop", "six", "fd00::9", r#"[{"port":9,"protocol":"SCTP"}]"#),
    ]);
    let variables = store.environment("shop", true).expect("listed");
    for (name, value) in [
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
        ("KUBERNETES_PORT", "tcp://10.0.0.1:443"),
        ("KUBERNETES_PORT_443_TCP", "tcp://10.0.0.1:443"),
        ("WEB_FRONT_SERVICE_HOST", "10.0.0.9"),
        ("WEB_FRONT_SERVICE_PORT", "80"),
        ("WEB_FRONT_SERVICE_PORT_HTTP", "80"),
        ("WEB_FRONT_SERVICE_PORT_DNS_UDP", "53"),
        ("WEB_FRONT_PORT", "tcp://10.0.0.9:80"),
        ("WEB_FRONT_PORT_80_TCP", "tcp://10.0.0.9:80"),
        ("SIX_SERVICE_HOST", "fd00::9"),
        ("SIX_PORT", "sctp://[fd00::9]:9"),
        ("SIX_PORT_9_SCTP_ADDR", "fd00::9"),
        ("WEB_FRONT_PORT_53_UDP", "udp://10.0.0.9:53"),
        ("WEB_FRONT_PORT_53_UDP_PROTO", "udp"),
        ("WEB_FRONT_PORT_53_UDP_PORT", "53"),
        ("WEB_FRONT_PORT_53_UDP_ADDR", "10.0.0.9"),
    ] {
        assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!variables.contains_key("DB_SERVICE_HOST"), "it is in another namespace");
    assert!(!variables.contains_key("HEADLESS_SERVICE_HOST"), "it has no address");
    let without = store.environment("shop", false).expect("listed");
    assert!(without.contains_key("KUBERNETES_SERVICE_HOST") && !without.contains_key("WEB_FRONT_SERVICE_HOST"));
    assert_eq!(without["KUBERNETES_SERVICE_PORT"], "443");
    let own = listed(vec![
        service("default", "kubernetes", "10.0.0.1", r#"[{"name":"https","port":443}]"#),
        service("shop", "kubernetes", "10.0.0.2", r#"[{"port":80}]"#),
    ]);
    let variables = own.environment("shop", true).expect("listed");
    assert_eq!(variables["KUBERNETES_SERVICE_HOST"], "10.0.0.2");
    assert!(!variables.contains_key("KUBERNETES_PORT_443_TCP"), "nothing of the other one is left");
    assert_eq!(own.environment("shop", false).expect("listed")["KUBERNETES_SERVICE_HOST"], "10.0.0.1");
    let default = store.environment("default", true).expect("listed");
    assert!(default.contains_key("KUBERNETES_SERVICE_HOST") && !default.contains_key("WEB_FRONT_SERVICE_HOST"));
}

#[test]
fn there_are_no_variables_before_the_first_list() {
    // A8.6
    assert_eq!(ServiceStore::default().environment("default", true), None);
}

#[test]
fn a_list_that_starts_over_reports_what_is_gone() {
    let mut sink = sink();
    sink.apply(Change::Listing);
    sink.apply(Change::Present(service("a", "x", "10.0.0.1", "[]")));
    sink.apply(Change::Present(service("a", "y", "10.0.0.2", "[]")));
    assert!(sink.apply(Change::Listed).is_empty(), "slices are not complete yet");
    sink.apply(Change::Listing);
    sink.apply(Change::Present(service("a", "y", "10.0.0.2", "[]")));
    let changes = sink.apply(Change::Listed);
    let [ServiceChange::ServiceGone(gone)] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(&*gone.name, "x");
}

#[test]
fn complete_comes_once_when_both_lists_are() {
    // B1.2
    let lists = Lists::default();
    assert!(!lists.complete(1));
    assert!(!lists.complete(1));
    assert!(lists.complete(2));
    assert!(!lists.complete(1));
}
