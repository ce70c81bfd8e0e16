//! What a container finds in its environment.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};
use stoker_model::handle::{ApiError, BoundToken};

use super::*;

#[test]
fn variables_are_expanded() {
    // A8.2
    let environment = Environment(vec![("A".into(), "1".into()), ("B".into(), "$(A)".into())]);
    for (text, expected) in [
        ("x $(A) y", "x 1 y"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(MISSING)", "$(MISSING)"),
        ("$(B)", "$(A)"),
        ("$A $ $(A", "$A $ $(A"),
        ("100$", "100$"),
        ("$()", "$()"),
    ] {
        assert_eq!(environment.expand(text), expected, "{text}");
    }
}

/// One ConfigMap, one Secret, one Service.
struct Cluster {
    listed: bool,
}

#[async_trait::async_trait]
impl ObjectApi for Cluster {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ApiError> {
        let data = [("A", "map"), ("B", "map"), ("odd.name-1", "odd"), ("WEB_PORT", "mine")];
        let data = data.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let map = ConfigMap { data: Some(data.into()), ..ConfigMap::default() };
        Ok(((namespace, name) == ("ns", "map")).then(|| Arc::new(map)))
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, ApiError> {
        let data = [("B", "secret"), ("C", "secret")].map(|(key, value)| (key.to_owned(), ByteString(value.into())));
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        Ok(((namespace, name) == ("ns", "secret")).then(|| Arc::new(secret)))
    }

    async fn service_account_token(&self, _: &PodRef, _: &str, _: &[String], _: i64) -> Result<BoundToken, ApiError> {
        Err(ApiError::NotFound("no tokens here".into()))
    }
}

impl ServiceLinks for Cluster {
    fn environment(&self, namespace: &str, enable_service_links: bool) -> Option<BTreeMap<String, String>> {
        assert_eq!(namespace, "ns");
        let api = ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned());
        let web = ["WEB_SERVICE_HOST", "WEB_PORT"].map(|name| (name.to_owned(), "service".to_owned()));
        self.listed.then(|| std::iter::once(api).chain(web.into_iter().filter(|_| enable_service_links)).collect())
    }
}

/// The environment of the pod's only container, as `NAME=value`, or why there is none.
async fn made(spec: Value, container: Value, cluster: &Cluster) -> Result<Vec<String>, String> {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"l": "1"}, "annotations": {"a": "2"}},
        "spec": {"containers": []},
    });
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let mut whole = json!({"name": "c"});
    whole.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let container: Container = serde_json::from_value(whole).unwrap();
    let node = NodeSnapshot { name: "n1".into(), ips: addresses(["192.0.2.7", "2001:db8::7"]), ..Default::default() };
    environment(&pod, &container, &node, cluster, Path::new("/nonexistent")).await
}

fn addresses(ips: [&str; 2]) -> Vec<std::net::IpAddr> {
    ips.map(|ip| ip.parse().unwrap()).to_vec()
}

async fn environment(
    pod: &Pod,
    container: &Container,
    node: &NodeSnapshot,
    cluster: &Cluster,
    volumes: &Path,
) -> Result<Vec<String>, String> {
    let pod_ips = ["10.0.0.2".to_owned(), "fd00::2".to_owned()];
    let sources = EnvSources { pod, node, pod_ips: &pod_ips, objects: cluster, services: cluster, volumes };
    let environment = sources.environment(container).await.map_err(|error| error.to_string())?;
    Ok(environment.into_vec().into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

const LISTED: Cluster = Cluster { listed: true };

#[tokio::test]
async fn later_sources_win_and_services_fill_what_is_left() {
    // A8.1, A8.2, A8.5, A8.6, A8.8
    let container = json!({
        "envFrom": [
            {"configMapRef": {"name": "map"}},
            {"secretRef": {"name": "secret"}},
            {"prefix": "x-y ", "configMapRef": {"name": "map"}},
            {"configMapRef": {"name": "none", "optional": true}},
        ],
        "env": [
            {"name": "EARLY", "value": "$(LATE) $(A) $(WEB_SERVICE_HOST) $$(A)"},
            {"name": "LATE", "value": "1"},
            {"name": "A", "value": "first"},
            {"name": "A", "value": "then $(A)"},
            {"name": "LAST", "value": "$(LATE) $(A)"},
        ],
    });
    let all = made(json!({}), container.clone(), &LISTED).await.unwrap();
    for expected in [
        "B=secret",
        "C=secret",
        "odd.name-1=odd",
        "x-y B=map",
        "x-y odd.name-1=odd",
        "WEB_PORT=mine",
        "WEB_SERVICE_HOST=service",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "EARLY=$(LATE) map service $(A)",
        "A=then first",
        "LAST=1 then first",
    ] {
        assert_eq!(all.iter().filter(|line| *line == expected).count(), 1, "{expected}: {all:#?}");
    }
    let mut names: Vec<&str> = all.iter().map(|line| line.split_once('=').unwrap().0).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "each name once: {all:#?}");

    let alone = made(json!({"enableServiceLinks": false}), json!({}), &LISTED).await.unwrap();
    assert_eq!(alone, ["KUBERNETES_SERVICE_HOST=10.96.0.1"]);
    let early = made(json!({}), json!({}), &Cluster { listed: false }).await;
    assert_eq!(early.unwrap_err(), "services have not yet been read at least once, cannot construct envvars");
    // What is made without an API server does not wait for its list.
    let mut pod = Pod { spec: Some(Default::default()), ..Pod::default() };
    let source = (stoker_model::names::CONFIG_SOURCE.to_owned(), "file".to_owned());
    (pod.metadata.namespace, pod.metadata.annotations) = (Some("ns".into()), Some([source].into()));
    let container = serde_json::from_value(json!({"name": "c", "env": [{"name": "A", "value": "1"}]})).unwrap();
    let early = Cluster { listed: false };
    let all = environment(&pod, &container, &NodeSnapshot::default(), &early, Path::new("/nonexistent")).await;
    assert_eq!(all.unwrap(), ["A=1"]);
}

#[tokio::test]
async fn fields_of_the_pod_become_variables() {
    // A8.3
    for (field, expected) in [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u"),
        ("metadata.labels['l']", "1"),
        ("metadata.annotations['a']", "2"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "robot"),
        ("status.hostIP", "192.0.2.7"),
        ("status.hostIPs", "192.0.2.7,2001:db8::7"),
        ("status.podIP", "10.0.0.2"),
        ("status.podIPs", "10.0.0.2,fd00::2"),
    ] {
        let container = json!({"env": [{"name": "F", "valueFrom": {"fieldRef": {"fieldPath": field}}}]});
        let spec = json!({"serviceAccountName": "robot", "enableServiceLinks": false});
        let all = made(spec, container, &LISTED).await.unwrap();
        assert!(all.contains(&format!("F={expected}")), "{field}: {all:?}");
    }
    // The node's primary family comes first, whatever the runtime told first.
    let node = NodeSnapshot { ips: addresses(["2001:db8::7", "192.0.2.7"]), ..NodeSnapshot::default() };
    let mut pod = Pod { spec: Some(Default::default()), ..Pod::default() };
    pod.metadata.namespace = Some("ns".into());
    for (field, expected) in [
        ("status.hostIP", "2001:db8::7"),
        ("status.hostIPs", "2001:db8::7,192.0.2.7"),
        ("status.podIP", "fd00::2"),
        ("status.podIPs", "fd00::2,10.0.0.2"),
    ] {
        let env = json!([{"name": "F", "valueFrom": {"fieldRef": {"fieldPath": field}}}]);
        let container = serde_json::from_value(json!({"name": "c", "env": env})).unwrap();
        let all = environment(&pod, &container, &node, &LISTED, Path::new("/nonexistent")).await.unwrap();
        assert!(all.contains(&format!("F={expected}")), "{field}: {all:?}");
    }
    let unknown = json!({"env": [{"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}}]});
    assert!(made(json!({}), unknown, &LISTED).await.unwrap_err().contains("unsupported fieldPath: spec.hostname"));
}

#[tokio::test]
async fn a_file_of_the_pod_gives_variables() {
    // A8.7
    let volumes = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(volumes.path().join("v/sub")).unwrap();
    std::fs::write(volumes.path().join("v/env"), "A='one'\nB=''\n").unwrap();
    std::fs::write(volumes.path().join("v/sub/env"), "A='below'\n").unwrap();
    std::fs::write(volumes.path().join("v/bad"), "A=one\n").unwrap();
    let pod = json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {
            "containers": [],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "other", "hostPath": {"path": "/"}}],
        },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let ask = async |volume: &str, path: &str, key: &str, optional: Option<bool>| {
        let source = json!({"volumeName": volume, "path": path, "key": key, "optional": optional});
        let env = json!([{"name": "K", "valueFrom": {"fileKeyRef": source}}]);
        let container = serde_json::from_value(json!({"name": "c", "env": env})).unwrap();
        let all = environment(&pod, &container, &NodeSnapshot::default(), &LISTED, volumes.path()).await?;
        Ok::<_, String>(all.into_iter().find_map(|line| line.strip_prefix("K=").map(str::to_owned)))
    };
    for (path, key, optional, expected) in [
        ("env", "A", None, Some("one")),
        ("env", "A", Some(true), Some("one")),
        ("sub/env", "A", Some(false), Some("below")),
        ("env", "B", Some(true), None),
        ("env", "C", Some(true), None),
    ] {
        let value = ask("v", path, key, optional).await;
        assert_eq!(value.as_ref().map(Option::as_deref), Ok(expected), "{path} {key} {optional:?}");
    }
    let absent = |key: &str| {
        let file = volumes.path().join("v/env");
        format!("environment variable key \"{key}\" not found in file \"{}\"", file.display())
    };
    let unparsed = || "couldn't parse env file".to_owned();
    for (volume, path, key, optional, expected) in [
        ("v", "env", "B", None, absent("B")),
        ("v", "env", "C", Some(false), absent("C")),
        ("v", "bad", "A", Some(true), unparsed()),
        ("v", "none", "A", Some(false), unparsed()),
        ("v", "none", "A", Some(true), unparsed()),
        ("v", "../v/env", "A", None, unparsed()),
        ("none", "env", "A", None, "cannot find the volume \"none\" referenced by FileKeyRef".to_owned()),
    ] {
        assert_eq!(ask(volume, path, key, optional).await, Err(expected), "{volume} {path} {key} {optional:?}");
    }
}

#[tokio::test]
async fn what_is_missing_is_named_unless_it_is_optional() {
    // A2.16, A8.5
    let key = |kind: &str, name: &str, key: &str, optional: bool| json!({"env": [{"name": "K", "valueFrom": {kind: {"name": name, "key": key, "optional": optional}}}]});
    let found = made(json!({}), key("secretKeyRef", "secret", "C", false), &LISTED).await.unwrap();
    assert!(found.contains(&"K=secret".to_owned()), "{found:?}");
    for (container, text) in [
        (key("configMapKeyRef", "map", "nope", false), "couldn't find key nope in ConfigMap ns/map"),
        (key("secretKeyRef", "secret", "nope", false), "couldn't find key nope in Secret ns/secret"),
        (key("configMapKeyRef", "none", "A", false), "configmap \"none\" not found"),
        (key("secretKeyRef", "none", "A", false), "secret \"none\" not found"),
        (json!({"envFrom": [{"configMapRef": {"name": "none"}}]}), "configmap \"none\" not found"),
        (json!({"envFrom": [{"secretRef": {"name": "none"}}]}), "secret \"none\" not found"),
    ] {
        assert_eq!(made(json!({}), container, &LISTED).await.unwrap_err(), text);
    }
    for container in [
        key("configMapKeyRef", "map", "nope", true),
        key("secretKeyRef", "none", "A", true),
        json!({"envFrom": [{"secretRef": {"name": "none", "optional": true}}]}),
    ] {
        let all = made(json!({}), container, &LISTED).await.unwrap();
        assert!(all.iter().all(|line| !line.starts_with("K=")), "{all:?}");
    }
}
