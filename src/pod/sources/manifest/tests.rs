//! Manifests as people write them, and what becomes of them.

use super::*;

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  hostNetwork: true
  containers:
  - name: main
    image: web:1
    ports:
    - containerPort: 80
    resources:
      limits: {cpu: 1, memory: 64Mi}
    livenessProbe:
      httpGet: {port: 80}
";

fn from_file(text: &str) -> Result<Pod, ManifestError> {
    pods(text.as_bytes(), Origin::File("/m/web.yaml"), "Node-1").map(|(pods, _)| pods.into_iter().next().unwrap())
}

#[test]
fn a_pod_of_a_file_gets_name_uid_and_annotations() {
    // A7.2
    let pod = from_file(WEB).unwrap();
    let meta = &pod.metadata;
    assert_eq!((meta.name.as_deref(), meta.namespace.as_deref()), (Some("web-node-1"), Some("default")));
    let uid = meta.uid.clone().unwrap();
    assert!(uid.len() == 32 && uid.chars().all(|c| c.is_ascii_hexdigit()), "{uid}");
    let annotations = meta.annotations.as_ref().unwrap();
    assert_eq!(annotations[names::CONFIG_HASH], uid);
    assert_eq!(annotations[names::CONFIG_SOURCE], "file");
    let spec = pod.spec.unwrap();
    assert_eq!(spec.node_name.as_deref(), Some("Node-1"));
    let toleration = &spec.tolerations.unwrap()[0];
    assert_eq!((toleration.operator.as_deref(), toleration.effect.as_deref()), (Some("Exists"), Some("NoExecute")));
}

#[test]
fn the_uid_follows_content_and_place() {
    // A7.2
    let uid = |text: &str, origin| pods(text.as_bytes(), origin, "n").unwrap().0[0].metadata.uid.clone().unwrap();
    let first = uid(WEB, Origin::File("/a"));
    assert_eq!(first, uid(&format!("# a comment\n{WEB}"), Origin::File("/a")));
    assert_ne!(first, uid(WEB, Origin::File("/b")));
    assert_ne!(first, uid(WEB, Origin::Url("/a")));
    assert_ne!(first, uid(&WEB.replace("web:1", "web:2"), Origin::File("/a")));
    assert_eq!(uid(&WEB.replace("name: web", "name: web\n  uid: mine"), Origin::File("/a")), "mine");
}

#[test]
fn what_is_not_said_is_filled_in() {
    let spec = from_file(WEB).unwrap().spec.unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.termination_grace_period_seconds, Some(30));
    let main = &spec.containers[0];
    let port = &main.ports.as_ref().unwrap()[0];
    assert_eq!((port.protocol.as_deref(), port.host_port), (Some("TCP"), Some(80)));
    let resources = main.resources.as_ref().unwrap();
    assert_eq!(resources.requests, resources.limits);
    assert_eq!(resources.limits.as_ref().unwrap()["cpu"].0, "1", "a number is an amount");
    let probe = main.liveness_probe.as_ref().unwrap();
    assert_eq!((probe.period_seconds, probe.failure_threshold, probe.timeout_seconds), (Some(10), Some(3), Some(1)));
    assert_eq!(probe.http_get.as_ref().unwrap().path.as_deref(), Some("/"));
}

#[test]
fn an_address_may_give_a_list_and_a_file_may_not() {
    // A7.1
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"NAME"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;
    let list = format!(
        r#"{{"apiVersion":"v1","kind":"PodList","items":[{},{}]}}"#,
        pod.replace("NAME", "a"),
        pod.replace("NAME", "b")
    );
    let (found, _) = pods(list.as_bytes(), Origin::Url("http://x"), "n").unwrap();
    let names: Vec<_> = found.iter().filter_map(|p| p.metadata.name.clone()).collect();
    assert_eq!(names, ["a-n", "b-n"]);
    assert_eq!(found[0].spec.as_ref().unwrap().tolerations, None, "only files' pods tolerate everything");
    assert_eq!(found[0].metadata.annotations.as_ref().unwrap()[names::CONFIG_SOURCE], "http");
    assert!(matches!(from_file(&list), Err(ManifestError::NotAPod(_))));
    assert!(from_file(&pod.replace("NAME", "a")).is_ok(), "JSON is read as well");
}

#[test]
fn the_first_document_counts() {
    let (found, more) = pods(format!("{WEB}\n---\n{WEB}").as_bytes(), Origin::File("/m"), "n").unwrap();
    assert_eq!((found.len(), more), (1, true));
    assert!(!pods(format!("{WEB}\n---\n").as_bytes(), Origin::File("/m"), "n").unwrap().1);
}

#[test]
fn what_cannot_run_is_refused_with_its_reason() {
    // A7.1
    for (text, expected) in [
        ("", "write one object"),
        ("\t{", "neither YAML nor JSON"),
        ("just words", "write one object"),
        ("kind: Pod\napiVersion: v2", "write one object"),
        (&WEB.replace("name: web", "labels: {}"), "name is needed for the pod"),
        (&WEB.replace("name: web", "name: We_b"), "metadata.name"),
        (&WEB.replace("image: web:1", "image: ''"), "has no image"),
        (&WEB.replace("name: main", "name: MAIN"), "not a lower-case DNS label"),
        (&WEB.replace("hostNetwork: true", "restartPolicy: Sometimes"), "restartPolicy"),
        (
            &WEB.replace("image: web:1", "image: w\n    volumeMounts: [{name: x, mountPath: /x}]"),
            "no volume of the pod",
        ),
        (&WEB.replace("containerPort: 80", "containerPort: 70000"), "not between 1 and 65535"),
        (&WEB.replace("hostNetwork: true", "hostNetwork: 5"), "invalid pod"),
        // A5.2
        (
            &WEB.replace("image: web:1", "image: w\n    startupProbe: {exec: {command: [a]}, successThreshold: 2}"),
            "startupProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (&WEB.replace("hostNetwork: true", "volumes: [{name: x}]"), "exactly one source"),
    ] {
        let error = from_file(text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn objects_of_an_api_server_are_refused() {
    // A7.4
    let with = |line: &str| WEB.replace("hostNetwork: true", line);
    let env = |from: &str| WEB.replace("image: web:1", &format!("image: w\n    {from}"));
    for (text, resource) in [
        (with("serviceAccountName: x"), "serviceaccounts"),
        (with("imagePullSecrets: [{name: x}]"), "secrets"),
        (with("resourceClaims: [{name: x}]"), "resourceclaims"),
        (with("volumes: [{name: v, configMap: {name: x}}]"), "configmaps"),
        (with("volumes: [{name: v, configMap: {optional: true}}]"), "configmaps (via configmap volumes)"),
        (with("volumes: [{name: v, secret: {secretName: x}}]"), "secrets"),
        (with("volumes: [{name: v, secret: {optional: true}}]"), "secrets (via secret volumes)"),
        (with("volumes: [{name: v, csi: {driver: x}}]"), "csidrivers (via CSI volumes)"),
        (with("volumes: [{name: v, csi: {driver: x, nodePublishSecretRef: {name: y}}}]"), "secrets"),
        (with("volumes: [{name: v, iscsi: {iqn: a, lun: 0, targetPortal: b, secretRef: {name: y}}}]"), "secrets"),
        (with("volumes: [{name: v, azureFile: {secretName: x, shareName: y}}]"), "secrets"),
        (with("volumes: [{name: v, glusterfs: {endpoints: x, path: y}}]"), "endpoints (via glusterFS volumes)"),
        (with("volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]"), "persistentvolumeclaims"),
        (
            with("volumes: [{name: v, ephemeral: {volumeClaimTemplate: {spec: {}}}}]"),
            "persistentvolumeclaims (via ephemeral volumes)",
        ),
        (with("volumes: [{name: v, projected: {sources: [{secret: {name: x}}]}}]"), "secrets"),
        (with("volumes: [{name: v, projected: {sources: [{configMap: {name: x}}]}}]"), "configmaps"),
        (
            with("volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]"),
            "serviceaccounts (via projected volumes)",
        ),
        (with("volumes: [{name: v, projected: {sources: [{clusterTrustBundle: {path: t}}]}}]"), "clustertrustbundles"),
        (
            with("volumes: [{name: v, projected: {sources: [{podCertificate: {keyType: k, signerName: s}}]}}]"),
            "podcertificates",
        ),
        (with("initContainers: [{name: i, image: i, envFrom: [{secretRef: {name: x}}]}]"), "secrets"),
        (env("envFrom: [{secretRef: {name: x}}]"), "secrets"),
        (env("envFrom: [{configMapRef: {name: x, optional: true}}]"), "configmaps"),
        (env("env: [{name: A, valueFrom: {secretKeyRef: {name: x, key: k}}}]"), "secrets"),
        (env("env: [{name: A, valueFrom: {configMapKeyRef: {name: x, key: k}}}]"), "configmaps"),
    ] {
        assert_eq!(from_file(&text).unwrap_err().to_string(), format!("static pods may not reference {resource}"));
    }
    // What the node itself can give is fine, and nothing of the API server's is added.
    let local = "volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /x}}, {name: n, nfs: {server: a, path: /}}, \
                 {name: p, projected: {sources: [{downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}]}}]";
    let spec = from_file(&with(local)).unwrap().spec.unwrap();
    assert_eq!(spec.volumes.map(|list| list.len()), Some(4));
    let bare = from_file(WEB).unwrap().spec.unwrap();
    assert_eq!((bare.service_account_name, bare.volumes, &bare.containers[0].volume_mounts), (None, None, &None));
}
