//! What objects get and are refused for because of other objects, as kubectl shows it.

use std::time::Duration;

use serde_json::{Value, json};

use super::ControlPlane;

impl ControlPlane {
    fn apply(&self, object: &Value) {
        self.ask("admin", &["create", "-f", "-"], &object.to_string()).unwrap_or_else(|why| panic!("{object}: {why}"));
    }

    #[track_caller]
    fn refused_with(&self, object: &Value, why: &str) {
        let error = self.ask("admin", &["create", "-f", "-"], &object.to_string()).unwrap_err();
        assert!(error.contains(why), "{error}\nshould say\n{why}");
    }

    /// Waits until kubectl prints what is expected.
    #[track_caller]
    fn until(&self, arguments: &str, expected: &str) {
        let mut last = String::new();
        for _ in 0..100 {
            last = self.kubectl(arguments);
            if last == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{arguments}: {last}, expected {expected}");
    }
}

fn pod(name: &str, namespace: &str, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
    json_patch::merge(&mut pod["spec"], &spec);
    pod
}

fn sized(name: &str, namespace: &str, resources: Value) -> Value {
    pod(name, namespace, json!({"containers": [{"name": "c", "image": "x:1", "resources": resources}]}))
}

fn namespace(plane: &ControlPlane, name: &str, labels: Value) {
    plane.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
    plane.until(&format!("-n {name} get sa default -o name --ignore-not-found"), "serviceaccount/default");
}

#[test]
fn classes_decide_about_pods_and_claims() {
    let plane = ControlPlane::start();
    // A15.11
    plane.refused_with(
        &pod("p", "default", json!({"runtimeClassName": "none"})),
        r#"pods "p" is forbidden: pod rejected: RuntimeClass "none" not found"#,
    );
    plane.refused_with(
        &pod("p", "default", json!({"overhead": {"cpu": "1"}})),
        "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
    );
    plane.apply(&json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "vm"}, "handler": "vm",
        "overhead": {"podFixed": {"cpu": "250m"}}, "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}}));
    plane.apply(&pod("in-vm", "default", json!({"runtimeClassName": "vm"})));
    let spec = plane.json("get pod in-vm -o json")["spec"].clone();
    assert_eq!((&spec["overhead"], &spec["nodeSelector"]), (&json!({"cpu": "250m"}), &json!({"vm": "yes"})));
    assert!(spec["tolerations"].as_array().unwrap().iter().any(|toleration| toleration["key"] == "vm"));
    plane.refused_with(
        &pod("p", "default", json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}})),
        "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no",
    );
    plane.refused_with(
        &pod("p", "default", json!({"runtimeClassName": "vm", "overhead": {"cpu": "1"}})),
        "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
    );
    // C5.11
    assert_eq!(plane.kubectl("get pc system-node-critical -o jsonpath={.value}"), "2000001000");
    plane.refused_with(
        &pod("p", "default", json!({"priorityClassName": "none"})),
        r#"pods "p" is forbidden: no PriorityClass with name none was found"#,
    );
    let class = |name: &str, value: i64, default: bool| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": name}, "value": value, "globalDefault": default})
    };
    plane.apply(&class("usual", 5, true));
    plane.refused_with(
        &class("other", 6, true),
        r#"priorityclasses.scheduling.k8s.io "other" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"#,
    );
    plane.refused_with(
        &class("system-mine", 6, false),
        "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only",
    );
    plane.refused_with(
        &class("high", 1_000_000_001, false),
        "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
    );
    plane.apply(&pod("p", "default", json!({})));
    assert_eq!(plane.kubectl("get pod p -o jsonpath={.spec.priorityClassName}/{.spec.priority}"), "usual/5");
    plane.refused_with(&pod("q", "default", json!({"priority": 6})), "the integer value of priority (6) must not be provided in pod spec; priority admission controller computed 5 from the given PriorityClass name");
    // C5.6: DefaultStorageClass and PersistentVolumeClaimResize.
    plane.apply(&json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "kubernetes.io/no-provisioner",
        "metadata": {"name": "usual", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}));
    plane.apply(
        &json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
    );
    assert_eq!(plane.kubectl("get pvc c -o jsonpath={.spec.storageClassName}"), "usual");
    let error = plane.refused(r#"patch pvc c -p {"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#, "");
    assert!(
        error.contains("Only bound persistent volume claims can be expanded") || error.contains("spec is immutable"),
        "{error}"
    );
    // A mistake is named in upstream's words all the way to kubectl.
    let error = plane.refused("run bad --image=x --restart=Sometimes", "");
    assert!(error.contains("invalid restart policy"), "{error}");
    plane.refused_with(
        &pod("bad", "default", json!({"hostNetwork": true, "containers": [{"name": "c", "image": "x:1", "ports": [{"containerPort": 80, "hostPort": 81}]}]})),
        "The Pod \"bad\" is invalid: spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
    );
}

#[test]
fn namespaces_say_how_secure_pods_must_be() {
    // C5.16
    let plane = ControlPlane::start();
    namespace(&plane, "strict", json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    plane.refused_with(
        &pod("p", "strict", json!({})),
        "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
    );
    plane.apply(&pod("good", "strict", json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "x:1", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]})));
    // Workloads are warned of what their pods will be refused for.
    let told = plane.told(&["-n", "strict", "create", "deployment", "d", "--image=x:1"]);
    assert!(
        told.contains("Warning: would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false"),
        "{told}"
    );
    plane.until("-n strict get deployment d -o jsonpath={.status.replicas}", "");
    // A new level looks at the pods that are there.
    namespace(&plane, "lax", json!({}));
    plane.apply(&pod("open", "lax", json!({"hostPID": true})));
    let told = plane.told(&["label", "namespace", "lax", "pod-security.kubernetes.io/enforce=baseline"]);
    assert!(
        told.contains(
            "existing pods in namespace \"lax\" violate the new PodSecurity enforce level \"baseline:latest\""
        ),
        "{told}"
    );
    assert!(told.contains("open: host namespaces"), "{told}");
    let error = plane.refused("label namespace lax pod-security.kubernetes.io/warn=much", "");
    assert!(error.contains("must be one of privileged, baseline, restricted"), "{error}");
}

#[test]
fn ranges_fill_in_and_bound() {
    // C5.11
    let plane = ControlPlane::start();
    namespace(&plane, "n", json!({}));
    plane.apply(&json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l", "namespace": "n"}, "spec": {"limits": [
        {"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]}}));
    plane.apply(&pod("p", "n", json!({})));
    let made = plane.json("-n n get pod p -o json");
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    plane.refused_with(
        &sized("q", "n", json!({"requests": {"cpu": "10m"}})),
        r#"pods "q" is forbidden: minimum cpu usage per Container is 50m, but request is 10m"#,
    );
    plane.refused_with(
        &json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "n"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}}),
        r#"persistentvolumeclaims "c" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"#,
    );
    plane.refused_with(
        &json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "m", "namespace": "n"},
            "spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}}),
        r#"spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1"#,
    );
}

#[test]
fn quotas_count_and_refuse() {
    // C5.11 C5.18
    let plane = ControlPlane::start();
    namespace(&plane, "n", json!({}));
    let quota = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name, "namespace": "n"}, "spec": spec});
    plane.apply(&quota("q", json!({"hard": {"pods": "2", "requests.cpu": "1", "services.nodeports": "1", "count/deployments.apps": "1", "configmaps": "3"}})));
    // The namespace has kube-root-ca.crt.
    plane.until("-n n get quota q -o jsonpath={.status.used.configmaps}/{.status.used.pods}", "1/0");
    plane.refused_with(
        &pod("p", "n", json!({})),
        r#"pods "p" is forbidden: failed quota: q: must specify requests.cpu for: c"#,
    );
    plane.apply(&sized("a", "n", json!({"requests": {"cpu": "600m"}})));
    assert_eq!(plane.kubectl("-n n get quota q -o jsonpath={.status.used.requests\\.cpu}"), "600m");
    plane.refused_with(
        &sized("b", "n", json!({"requests": {"cpu": "500m"}})),
        r#"pods "b" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"#,
    );
    plane.apply(&sized("b", "n", json!({"requests": {"cpu": "100m"}})));
    plane.refused_with(
        &sized("c", "n", json!({"requests": {"cpu": "100m"}})),
        r#"pods "c" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"#,
    );
    // What is not written is not counted.
    plane.ask("admin", &["-n", "n", "create", "configmap", "m", "--dry-run=server"], "").unwrap();
    plane.kubectl("-n n create deployment d --image=x:1 --replicas=0");
    let error = plane.refused("-n n create deployment e --image=x:1 --replicas=0", "");
    assert!(error.contains("exceeded quota: q, requested: count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1"), "{error}");
    plane.kubectl("-n n create service nodeport s --tcp=80");
    let error = plane.refused("-n n create service nodeport t --tcp=80", "");
    assert!(error.contains("exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1"), "{error}");
    // What goes is free again.
    plane.kubectl("-n n delete pod b --grace-period=0 --force");
    plane.until("-n n get quota q -o jsonpath={.status.used.pods}/{.status.used.requests\\.cpu}", "1/600m");
    plane.apply(&sized("c", "n", json!({"requests": {"cpu": "100m"}})));
    // Scopes choose what counts.
    plane.apply(&quota("best", json!({"hard": {"pods": "5"}, "scopes": ["BestEffort"]})));
    plane.until("-n n get quota best -o jsonpath={.status.used.pods}", "0");
    plane.refused_with(
        &quota("bad", json!({"hard": {"pods": "5"}, "scopes": ["BestEffort", "NotBestEffort"]})),
        "conflicting scopes",
    );
    // C4.26
    let table = plane.kubectl("-n n get quota q");
    assert!(table.contains("requests.cpu: 700m/1"), "{table}");
    assert!(table.starts_with("NAME"), "{table}");
}

#[test]
fn pods_get_their_account_and_its_token() {
    // C5.7, A9.12
    let plane = ControlPlane::start();
    plane.refused_with(
        &pod("p", "default", json!({"serviceAccountName": "none"})),
        r#"pods "p" is forbidden: error looking up service account default/none: serviceaccount "none" not found"#,
    );
    plane.apply(
        &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "quiet", "namespace": "default"},
        "imagePullSecrets": [{"name": "pull"}], "automountServiceAccountToken": false}),
    );
    plane.apply(&pod("quiet", "default", json!({"serviceAccountName": "quiet"})));
    let spec = plane.json("get pod quiet -o json")["spec"].clone();
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!((spec.get("volumes"), &spec["serviceAccount"]), (None, &json!("quiet")));
    // The pod's own word wins over the account's, and its own secrets are all that it has.
    plane.apply(&pod("loud", "default", json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true,
        "imagePullSecrets": [{"name": "own"}], "initContainers": [{"name": "i", "image": "x:1"},
        {"name": "j", "image": "x:1", "volumeMounts": [{"name": "v", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]})));
    let spec = plane.json("get pod loud -o json")["spec"].clone();
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "own"}]));
    let volume = spec["volumes"][1]["name"].as_str().unwrap();
    assert!(volume.strip_prefix("kube-api-access-").is_some_and(|suffix| suffix.len() == 5), "{volume}");
    for container in [&spec["containers"][0], &spec["initContainers"][0]] {
        assert_eq!(container["volumeMounts"][0]["name"], volume);
    }
    assert_eq!(spec["initContainers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    plane.apply(&pod("usual", "default", json!({})));
    assert_eq!(plane.kubectl("get pod usual -o jsonpath={.spec.serviceAccountName}"), "default");
    let mut mirror = pod("m", "default", json!({"nodeName": "n1", "serviceAccountName": "quiet"}));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    plane.refused_with(&mirror, "a mirror pod may not reference service accounts");
    mirror["spec"].as_object_mut().unwrap().remove("serviceAccountName");
    mirror["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "s"}}]);
    plane.refused_with(&mirror, "a mirror pod may not reference secrets");
}
