//! The wrong fields of pods, by subject, each with upstream's words (C3.24).

use serde_json::{Value, json};

use super::super::pod_defaults::default_pod;
use super::*;

pub(super) fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// A good pod, changed.
pub(super) fn pod(spec: &Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
        "serviceAccountName": "default", "containers": [{"name": "c", "image": "i"}]}});
    json_patch::merge(&mut pod["spec"], spec);
    default_pod(&mut pod);
    pod
}

#[track_caller]
pub(super) fn check(spec: &Value, expected: &[&str]) {
    assert_eq!(texts(&validate(&pod(spec))), expected, "{spec}");
}

/// The container's fields, and what is wrong below the container.
#[track_caller]
pub(super) fn check_container(fields: Value, expected: &[&str]) {
    let mut container = json!({"name": "c", "image": "i"});
    json_patch::merge(&mut container, &fields);
    let volumes =
        json!([{"name": "v", "emptyDir": {}}, {"name": "claim", "persistentVolumeClaim": {"claimName": "x"}}]);
    let expected: Vec<String> = expected.iter().map(|text| format!("spec.containers[0].{text}")).collect();
    let found = texts(&validate(&pod(&json!({"containers": [container], "volumes": volumes}))));
    assert_eq!(found, expected, "{fields}");
}

/// A volume's source, and what is wrong below the volume.
#[track_caller]
pub(super) fn check_volume(source: Value, expected: &[&str]) {
    let mut volume = json!({"name": "v"});
    json_patch::merge(&mut volume, &source);
    let expected: Vec<String> = expected.iter().map(|text| format!("spec.volumes[0]{text}")).collect();
    assert_eq!(texts(&validate(&pod(&json!({"volumes": [volume]})))), expected, "{source}");
}

#[test]
fn containers() {
    check(&json!({}), &[]);
    check(&json!({"containers": null}), &["spec.containers: Required value"]);
    check_container(json!({"image": null}), &["image: Required value"]);
    check_container(
        json!({"image": " i"}),
        &["image: Invalid value: \" i\": must not have leading or trailing whitespace"],
    );
    check_container(json!({"name": "a.b"}), &["name: Invalid value: \"a.b\": must not contain dots"]);
    check_container(
        json!({"imagePullPolicy": "Later", "terminationMessagePolicy": "Elsewhere"}),
        &[
            "terminationMessagePolicy: Unsupported value: \"Elsewhere\": supported values: \"File\", \"FallbackToLogsOnError\"",
            "imagePullPolicy: Unsupported value: \"Later\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    check(
        &json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
        &["spec.containers[1].name: Duplicate value: \"c\""],
    );
    check(
        &json!({"initContainers": [{"name": "c", "image": "i"}]}),
        &["spec.initContainers[0].name: Duplicate value: \"c\""],
    );
    check(
        &json!({"ephemeralContainers": [{"name": "d", "image": "i"}]}),
        &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
    );
}

#[test]
fn ports() {
    let port = |port: Value| json!({"ports": [port]});
    check_container(port(json!({})), &["ports[0].containerPort: Required value"]);
    check_container(
        port(json!({"containerPort": 70000, "hostPort": -1, "protocol": "ICMP", "name": "8-"})),
        &[
            "ports[0].name: Invalid value: \"8-\": must contain at least one letter (a-z)",
            "ports[0].name: Invalid value: \"8-\": must not begin or end with a hyphen",
            "ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "ports[0].hostPort: Invalid value: -1: must be between 1 and 65535, inclusive",
            "ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
    check_container(
        json!({"ports": [{"containerPort": 1, "hostPort": 80, "name": "a"}, {"containerPort": 2, "hostPort": 80, "name": "a"}]}),
        &["ports[1].name: Duplicate value: \"a\"", "ports[1].hostPort: Duplicate value: \"TCP//80\""],
    );
    check(
        &json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]}),
        &[
            "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
        ],
    );
}

#[test]
fn environment() {
    let variable = |variable: Value| json!({"env": [variable]});
    check_container(variable(json!({})), &["env[0].name: Required value"]);
    check_container(
        variable(json!({"name": "a=b"})),
        &[
            "env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
        ],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {}})),
        &[
            "env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ],
    );
    check_container(
        variable(json!({"name": "a", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})),
        &["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}})),
        &[
            "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
        ],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "spec.color"}}})),
        &[
            "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.color\": error converting fieldPath: field label not supported: spec.color",
        ],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}})),
        &[],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1Mi"}}})),
        &[
            "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource",
        ],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {"secretKeyRef": {"name": "s", "key": ".."}}})),
        &["env[0].valueFrom.secretKeyRef.key: Invalid value: \"..\": must not be '..'"],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {"fileKeyRef": {"key": "K", "path": "../f", "volumeName": "none"}}})),
        &[
            "env[0].valueFrom.fileKeyRef.path: Invalid value: \"../f\": must not contain '..'",
            "env[0].valueFrom.fileKeyRef.volumeName: Not found: \"none\"",
        ],
    );
    check_container(
        variable(json!({"name": "a", "valueFrom": {"fileKeyRef": {"key": "K", "path": "f", "volumeName": "claim"}}})),
        &[
            "env[0].valueFrom.fileKeyRef.volumeName: Invalid value: \"claim\": referenced volume must be of type emptyDir",
        ],
    );
    check_container(
        json!({"envFrom": [{}]}),
        &["envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"],
    );
    check_container(json!({"envFrom": [{"secretRef": {}}]}), &["envFrom[0].secretRef.name: Required value"]);
}

#[test]
fn mounts() {
    let mount = |mount: Value| json!({"volumeMounts": [mount]});
    check_container(
        mount(json!({"name": "x"})),
        &["volumeMounts[0].name: Not found: \"x\"", "volumeMounts[0].mountPath: Required value"],
    );
    check_container(
        json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]}),
        &["volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique"],
    );
    check_container(
        mount(json!({"name": "v", "mountPath": "/a", "subPath": "/x", "subPathExpr": "../y"})),
        &[
            "volumeMounts.subPath: Invalid value: \"/x\": must be a relative path",
            "volumeMounts[0].subPathExpr: Invalid value: \"../y\": subPathExpr and subPath are mutually exclusive",
            "volumeMounts.subPathExpr: Invalid value: \"../y\": must not contain '..'",
        ],
    );
    check_container(
        mount(
            json!({"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional", "recursiveReadOnly": "Enabled"}),
        ),
        &[
            "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
            "volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
            "volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified",
        ],
    );
    check_container(
        json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/../x"}]}),
        &[
            "volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            "volumeDevices[0].devicePath: Invalid value: \"/dev/../x\": can not contain backsteps ('..')",
        ],
    );
    check_container(json!({"volumeDevices": [{"name": "claim", "devicePath": "/dev/x"}]}), &[]);
}

#[test]
fn probes_and_hooks() {
    // A5.2
    for probe in ["livenessProbe", "startupProbe"] {
        let told = format!("{probe}.successThreshold: Invalid value: 3: must be 1");
        check_container(json!({probe: {"exec": {"command": ["a"]}, "successThreshold": 3}}), &[&told]);
    }
    check_container(json!({"readinessProbe": {"exec": {"command": ["a"]}, "successThreshold": 3}}), &[]);
    check_container(json!({"livenessProbe": {}}), &["livenessProbe: Required value: must specify a handler type"]);
    check_container(
        json!({"livenessProbe": {"exec": {"command": ["a"]}, "grpc": {"port": 1}, "successThreshold": 2}}),
        &[
            "livenessProbe.grpc: Forbidden: may not specify more than 1 handler type",
            "livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ],
    );
    // A5.2
    check_container(
        json!({
            "startupProbe": {"exec": {"command": ["a"]}, "successThreshold": 2},
            "readinessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}
        }),
        &["startupProbe.successThreshold: Invalid value: 2: must be 1"],
    );
    check_container(
        json!({"readinessProbe": {"tcpSocket": {"port": "-"}, "periodSeconds": -1, "terminationGracePeriodSeconds": 1}}),
        &[
            "readinessProbe.tcpSocket.port: Invalid value: \"-\": must contain at least one letter (a-z)",
            "readinessProbe.tcpSocket.port: Invalid value: \"-\": must not begin or end with a hyphen",
            "readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            "readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes",
        ],
    );
    check_container(
        json!({"startupProbe": {"httpGet": {"port": 0, "scheme": "FTP", "httpHeaders": [{"name": "a b", "value": ""}]}, "terminationGracePeriodSeconds": 0}}),
        &[
            "startupProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "startupProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
            "startupProbe.httpGet.httpHeaders: Invalid value: \"a b\": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
            "startupProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0",
        ],
    );
    check_container(
        json!({"lifecycle": {"postStart": {"exec": {}}}}),
        &["lifecycle.postStart.exec.command: Required value"],
    );
    check_container(
        json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}),
        &[
            "lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ],
    );
    check_container(
        json!({"lifecycle": {"stopSignal": "SIGTERM"}}),
        &["lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`"],
    );
    check(
        &json!({"initContainers": [{"name": "i", "image": "i", "startupProbe": {"exec": {"command": ["a"]}}}]}),
        &[
            "spec.initContainers[0].startupProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    );
    let sidecar =
        json!({"name": "i", "image": "i", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["a"]}}});
    check(&json!({"initContainers": [sidecar]}), &[]);
}

#[test]
fn restarts_and_resizes() {
    check_container(
        json!({"restartPolicy": "Maybe"}),
        &["restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\""],
    );
    check_container(
        json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}),
        &["restartPolicy: Required value: must specify restartPolicy when restart rules are used"],
    );
    check_container(
        json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Sleep"}, {"action": "Restart", "exitCodes": {"operator": "Of"}}]}),
        &[
            "restartPolicyRules[0].action: Unsupported value: \"Sleep\": supported values: \"Restart\", \"RestartAllContainers\"",
            "restartPolicyRules[0].exitCodes: Required value: must be specified",
            "restartPolicyRules[1].exitCodes.operator: Unsupported value: \"Of\": supported values: \"In\", \"NotIn\"",
        ],
    );
    let rule = json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}});
    check_container(
        json!({"restartPolicy": "Never", "restartPolicyRules": vec![rule; 21]}),
        &["restartPolicyRules: Too many: 21: must have at most 20 items"],
    );
    check_container(
        json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "cpu", "restartPolicy": "Now"}, {"resourceName": "gpu", "restartPolicy": "NotRequired"}]}),
        &[
            "resizePolicy[1]: Duplicate value: \"cpu\"",
            "resizePolicy: Unsupported value: \"Now\": supported values: \"NotRequired\", \"RestartContainer\"",
            "resizePolicy: Unsupported value: \"gpu\": supported values: \"cpu\", \"memory\"",
        ],
    );
    check(
        &json!({"restartPolicy": "Sometimes", "dnsPolicy": "Mine"}),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.dnsPolicy: Unsupported value: \"Mine\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"",
        ],
    );
}

#[test]
fn resources() {
    let resources = |resources: Value| json!({ "resources": resources });
    check_container(
        resources(json!({"limits": {"memory": "1Gi"}, "requests": {"memory": "2048Mi"}})),
        &["resources.requests: Invalid value: \"2Gi\": must be less than or equal to memory limit of 1Gi"],
    );
    check_container(
        resources(json!({"limits": {"cpu": "-1", "gpu": "1"}})),
        &[
            "resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            "resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
            "resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
            "resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            "resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
            "resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
        ],
    );
    check_container(
        resources(json!({"requests": {"example.com/gpu": "1500m"}})),
        &[
            "resources.requests[example.com/gpu]: Invalid value: \"1500m\": must be an integer",
            "resources.limits: Required value: Limit must be set for non overcommitable resources",
        ],
    );
    check_container(
        resources(json!({"limits": {"hugepages-2Mi": "2Mi"}})),
        &["resources: Forbidden: HugePages require cpu or memory"],
    );
    check_container(
        resources(json!({"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}, "requests": {"hugepages-2Mi": "3Mi"}})),
        &[
            "resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
            "resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
        ],
    );
    check_container(
        resources(json!({"claims": [{"name": "a"}]})),
        &["resources.claims[0]: Not found: \"a\": must be one of the names in pod.spec.resourceClaims which is empty"],
    );
    check(
        &json!({"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "ephemeral-storage": "1"}},
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1500m"}, "limits": {"cpu": "3"}}}]}),
        &[
            "spec.resources.limits[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\"",
            "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 1500m",
            "spec.resources.containers[0][cpu].limits: Invalid value: \"3\": must be less than or equal to pod limits of 2",
        ],
    );
    check(
        &json!({"resourceClaims": [{"name": "a"}, {"name": "a", "resourceClaimName": "x"}]}),
        &[
            "spec.resourceClaims[0]: Invalid value: {\"name\":\"a\"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            "spec.resourceClaims[1].name: Duplicate value: \"a\"",
        ],
    );
}

#[test]
fn the_pod_as_a_whole_gets_what_its_containers_ask_for() {
    // C3.23
    let made = pod(&json!({"resources": {"limits": {"cpu": "2", "memory": "2Gi"}}, "containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m"}}}, {"name": "d", "image": "i", "resources": {"requests": {"cpu": "250m"}}}]}));
    assert_eq!(made["spec"]["resources"]["requests"], json!({"cpu": "750m", "memory": "2Gi"}));
}
