//! The wrong fields of pods, continued: volumes, security, placement, names, changes (C3.24).

use serde_json::{Value, json};

use super::tests::{check, check_container, check_volume, pod, texts};
use super::*;

#[test]
fn volumes() {
    // A9.10, A9.11
    check_volume(
        json!({"name": "V"}),
        &[
            ".name: Invalid value: \"V\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ],
    );
    check_volume(
        json!({"emptyDir": {"sizeLimit": "-1"}, "hostPath": {"path": "/"}}),
        &[
            ".emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
            ".hostPath: Forbidden: may not specify more than 1 volume type",
        ],
    );
    check_volume(
        json!({"hostPath": {"path": "/a/../b", "type": "Pipe"}}),
        &[
            ".hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            ".hostPath.type: Unsupported value: \"Pipe\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
        ],
    );
    check_volume(
        json!({"secret": {"defaultMode": 512, "items": [{"key": "", "path": "..x"}]}}),
        &[
            ".secret.secretName: Required value",
            ".secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
            ".secret.items[0].key: Required value",
            ".secret.items[0].path: Invalid value: \"..x\": must not start with '..'",
        ],
    );
    check_volume(json!({"configMap": {}}), &[".configMap.name: Required value"]);
    check_volume(
        json!({"downwardAPI": {"items": [{"path": "/a", "fieldRef": {"fieldPath": "status.podIP"}}, {"path": "b"}]}}),
        &[
            ".downwardAPI.path: Invalid value: \"/a\": must be a relative path",
            ".downwardAPI.fieldRef.fieldPath: Unsupported value: \"status.podIP\": supported values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \"metadata.uid\"",
            ".downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
        ],
    );
    check_volume(
        json!({"persistentVolumeClaim": {"claimName": ""}}),
        &[".persistentVolumeClaim.claimName: Required value"],
    );
    check_volume(
        json!({"nfs": {"server": "", "path": "x"}}),
        &[".nfs.server: Required value", ".nfs.path: Invalid value: \"x\": must be an absolute path"],
    );
    check_volume(json!({"csi": {"driver": ""}}), &[".csi.driver: Required value"]);
    check_volume(json!({"image": {}}), &[".image.reference: Required value"]);
    check_volume(
        json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOncePod", "ReadOnlyMany"]}}}}),
        &[
            ".ephemeral.volumeClaimTemplate.spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ".ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value",
        ],
    );
    check_volume(
        json!({"projected": {"sources": [
            {"secret": {"name": "a", "items": [{"key": "k", "path": "f"}]}, "configMap": {"name": "b", "items": [{"key": "k", "path": "f"}]}},
            {"serviceAccountToken": {"path": "t", "expirationSeconds": 5}},
            {"clusterTrustBundle": {"path": "b"}}]}}),
        &[
            ".projected: Invalid value: \"b\": conflicting duplicate paths",
            ".projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
            ".projected.sources[1].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
            ".projected.sources[2].clusterTrustBundle: Required value: either name or signerName must be specified",
        ],
    );
    // A volume with a fault is none for mounts.
    check(
        &json!({"volumes": [{"name": "v", "nfs": {"server": "s", "path": "x"}}], "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
        &[
            "spec.volumes[0].nfs.path: Invalid value: \"x\": must be an absolute path",
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ],
    );
}

#[test]
fn volumes_of_old_kinds() {
    for (source, expected) in [
        (
            json!({"gitRepo": {"repository": "", "directory": "/a"}}),
            vec![
                ".gitRepo.repository: Required value",
                ".gitRepo.directory: Invalid value: \"/a\": must be a relative path",
            ],
        ),
        (
            json!({"gcePersistentDisk": {"pdName": "", "partition": 300}}),
            vec![
                ".persistentDisk.pdName: Required value",
                ".persistentDisk.partition: Invalid value: 300: must be between 1 and 255, inclusive",
            ],
        ),
        (
            json!({"iscsi": {"targetPortal": "p", "iqn": "iqn.2001-04.com.example:storage", "lun": 256}}),
            vec![".iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive"],
        ),
        (
            json!({"iscsi": {"targetPortal": "p", "iqn": "iqn.x", "lun": 0}}),
            vec![".iscsi.iqn: Invalid value: \"iqn.x\": must be valid format"],
        ),
        (
            json!({"fc": {"targetWWNs": ["a"]}}),
            vec![".fc.lun: Required value: lun is required if targetWWNs is specified"],
        ),
        (
            json!({"flexVolume": {"driver": "d", "options": {"kubernetes.io/x": "y"}}}),
            vec![
                ".flexVolume.options[kubernetes.io/x]: Invalid value: \"kubernetes.io/x\": kubernetes.io and k8s.io namespaces are reserved",
            ],
        ),
        (json!({"rbd": {"monitors": [], "image": "i"}}), vec![".rbd.monitors: Required value"]),
        (
            json!({"azureDisk": {"diskName": "d", "diskURI": "u"}}),
            vec![
                ".azureDisk.diskURI: Unsupported value: \"u\": supported values: \"https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd\"",
            ],
        ),
    ] {
        check_volume(source, &expected);
    }
}

#[test]
fn security() {
    // A10.4, A10.8, A10.9
    check_container(
        json!({"securityContext": {"runAsUser": -1, "procMount": "Unmasked", "seccompProfile": {"type": "Localhost"}, "appArmorProfile": {"type": "Mine"}}}),
        &[
            "securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            "securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
            "securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            "securityContext.appArmorProfile.type: Unsupported value: \"Mine\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\"",
        ],
    );
    check_container(
        json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
        &[
            "securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ],
    );
    let context = |context: Value| json!({ "securityContext": context });
    check(
        &context(
            json!({"fsGroup": -2, "fsGroupChangePolicy": "Never", "supplementalGroupsPolicy": "Some", "seLinuxChangePolicy": "x"}),
        ),
        &[
            "spec.securityContext.fsGroup: Invalid value: -2: must be between 0 and 2147483647, inclusive",
            "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Never\": supported values: \"Always\", \"OnRootMismatch\"",
            "spec.securityContext.supplementalGroupsPolicy: Unsupported value: \"Some\": supported values: \"Merge\", \"Strict\"",
            "spec.securityContext.seLinuxChangePolicy: Unsupported value: \"x\": supported values: \"MountOption\", \"Recursive\"",
        ],
    );
    check(
        &json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.ipv4.x", "value": "1"}, {"name": "A", "value": "1"}, {"name": "kernel.x", "value": ""}, {"name": "kernel.x", "value": ""}]}}),
        &[
            "spec.securityContext.sysctls[0].name: Invalid value: \"net.ipv4.x\": may not be specified when 'hostNetwork' is true",
            "spec.securityContext.sysctls[1].name: Invalid value: \"A\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            "spec.securityContext.sysctls[3].name: Duplicate value: \"kernel.x\"",
        ],
    );
    check(
        &json!({"hostPID": true, "shareProcessNamespace": true}),
        &[
            "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
        ],
    );
    check(
        &json!({"hostUsers": false, "hostNetwork": true, "hostIPC": true}),
        &[
            "spec.hostNetwork: Forbidden: when `hostUsers` is false",
            "spec.HostIPC: Forbidden: when `hostUsers` is false",
        ],
    );
    check(
        &json!({"os": {"name": "windows"}, "hostPID": true, "securityContext": {"fsGroup": 1}}),
        &[
            "spec.hostPID: Forbidden: cannot be set for a windows pod",
            "spec.securityContext.fsGroup: Forbidden: cannot be set for a windows pod",
        ],
    );
    check(
        &json!({"os": {"name": "plan9"}}),
        &["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""],
    );
}

#[test]
fn placement() {
    check(
        &json!({"tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "x"}, {"key": "a", "effect": "Later", "tolerationSeconds": 1}, {"key": "a", "operator": "Gt", "value": "1"}]}),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            "spec.tolerations[1].operator: Invalid value: \"x\": value must be empty when `operator` is 'Exists'",
            "spec.tolerations[2].effect: Invalid value: \"Later\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            "spec.tolerations[2].effect: Unsupported value: \"Later\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            "spec.tolerations[3].operator: Unsupported value: \"Gt\": supported values: \"Equal\", \"Exists\", \"Lt\", \"Gt\"",
        ],
    );
    check(
        &json!({"topologySpreadConstraints": [
            {"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "Never", "minDomains": 1, "matchLabelKeys": ["a"]},
            {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}, {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Never\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
            "spec.topologySpreadConstraints[0].minDomains: Invalid value: 1: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not Never",
            "spec.topologySpreadConstraints[0].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set",
            "spec.topologySpreadConstraints[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{z, DoNotSchedule}\"",
        ],
    );
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    check(
        &json!({"affinity": {
            "nodeAffinity": {required: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Gt", "values": ["1", "2"]}], "matchFields": [{"key": "x", "operator": "Exists"}]}]},
                preferred: [{"weight": 101, "preference": {}}]},
            "podAntiAffinity": {required: [{"labelSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}, "topologyKey": ""}]}}}),
        &[
            &format!(
                "spec.affinity.nodeAffinity.{required}.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
            ),
            &format!(
                "spec.affinity.nodeAffinity.{required}.nodeSelectorTerms[0].matchExpressions[1].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"
            ),
            &format!(
                "spec.affinity.nodeAffinity.{required}.nodeSelectorTerms[0].matchFields[0].operator: Invalid value: \"Exists\": not a valid selector operator"
            ),
            &format!(
                "spec.affinity.nodeAffinity.{required}.nodeSelectorTerms[0].matchFields[0].key: Invalid value: \"x\": not a valid field selector key"
            ),
            &format!(
                "spec.affinity.nodeAffinity.{preferred}[0].weight: Invalid value: 101: must be in the range 1-100"
            ),
            &format!(
                "spec.affinity.podAntiAffinity.{required}[0].labelSelector.matchExpressions[0].operator: Invalid value: \"Like\": not a valid selector operator"
            ),
            &format!("spec.affinity.podAntiAffinity.{required}[0].topologyKey: Required value: can not be empty"),
            &format!(
                "spec.affinity.podAntiAffinity.{required}[0].topologyKey: Invalid value: \"\": name part must be non-empty"
            ),
            &format!(
                "spec.affinity.podAntiAffinity.{required}[0].topologyKey: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            ),
        ],
    );
    check(
        &json!({"schedulingGates": [{"name": "a"}, {"name": "a"}], "nodeName": "n"}),
        &[
            "spec.schedulingGates[1]: Duplicate value: \"a\"",
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ],
    );
    check(
        &json!({"preemptionPolicy": "Always", "activeDeadlineSeconds": 0}),
        &[
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            "spec.preemptionPolicy: Unsupported value: \"Always\": supported values: \"PreemptLowerPriority\", \"Never\"",
        ],
    );
}

#[test]
fn names_and_resolver() {
    check(
        &json!({"dnsPolicy": "None"}),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
    check(
        &json!({"dnsConfig": {"nameservers": ["1.1.1.1", "x", "1.1.1.2", "1.1.1.3"], "searches": ["_a.b", "A"], "options": [{}]}}),
        &[
            "spec.dnsConfig.nameservers: Invalid value: [\"1.1.1.1\",\"x\",\"1.1.1.2\",\"1.1.1.3\"]: must not have more than 3 nameservers",
            "spec.dnsConfig.nameservers[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "spec.dnsConfig.searches[1]: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')",
            "spec.dnsConfig.options[0]: Required value: must not be empty",
        ],
    );
    check(&json!({"hostname": "a.b"}), &["spec.hostname: Invalid value: \"a.b\": must not contain dots"]);
    check(
        &json!({"hostnameOverride": "a", "setHostnameAsFQDN": true}),
        &["spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true"],
    );
    check(
        &json!({"hostAliases": [{"ip": "x", "hostnames": ["a"]}]}),
        &[
            "spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
}

#[test]
fn annotations() {
    let mut made = pod(&json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}));
    made["metadata"]["annotations"] = json!({
        "kubernetes.io/config.mirror": "x", "controller.kubernetes.io/pod-deletion-cost": "many",
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined", "container.apparmor.security.beta.kubernetes.io/z": "mine"});
    assert_eq!(
        texts(&validate(&made)),
        [
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/z]: Invalid value: \"z\": container not found",
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/z]: Invalid value: \"mine\": invalid AppArmor profile name: \"mine\"",
            "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"many\": must be a 32bit integer",
            "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set",
            "spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match",
        ]
    );
}

#[track_caller]
fn check_update(old: &Value, new: &Value, expected: &[&str]) {
    assert_eq!(texts(&validate_update(&pod(new), &pod(old))), expected, "{old} -> {new}");
}

#[test]
fn updates() {
    // C3.24
    let image = json!({"containers": [{"name": "c", "image": "i:2", "imagePullPolicy": "Always"}]});
    check_update(&json!({}), &image, &[]);
    check_update(&json!({}), &json!({"nodeName": "m"}), &[&format!("spec: Forbidden: {}", super::update::MUTABLE)]);
    check_update(
        &json!({}),
        &json!({"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]}),
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    check_update(&json!({}), &json!({"activeDeadlineSeconds": 5}), &[]);
    check_update(
        &json!({"activeDeadlineSeconds": 5}),
        &json!({"activeDeadlineSeconds": 6}),
        &["spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value"],
    );
    check_update(
        &json!({"activeDeadlineSeconds": 5}),
        &json!({}),
        &["spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value"],
    );
    let toleration = json!({"key": "a", "operator": "Exists", "effect": "NoExecute"});
    check_update(&json!({}), &json!({"tolerations": [toleration]}), &[]);
    check_update(
        &json!({"tolerations": [toleration]}),
        &json!({}),
        &["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"],
    );
    let gate = json!([{"name": "a"}]);
    check_update(&json!({"schedulingGates": gate}), &json!({}), &[]);
    check_update(
        &json!({}),
        &json!({"schedulingGates": gate}),
        &["spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'a'"],
    );
    check_update(&json!({"schedulingGates": gate}), &json!({"schedulingGates": gate, "nodeSelector": {"a": "b"}}), &[]);
    check_update(
        &json!({"schedulingGates": gate, "nodeSelector": {"a": "b"}}),
        &json!({"schedulingGates": gate, "nodeSelector": {"a": "c"}}),
        &[
            "spec.nodeSelector: Invalid value: {\"a\":\"c\"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ],
    );
    let affinity = |terms: Value| json!({"schedulingGates": gate, "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
    let term = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
    check_update(&json!({"schedulingGates": gate}), &affinity(json!([term])), &[]);
    check_update(
        &affinity(json!([term])),
        &affinity(json!([term, term])),
        &[&format!(
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Invalid value: {}: no additions/deletions to non-empty NodeSelectorTerms list are allowed",
            json!([term, term])
        )],
    );
}

#[test]
fn resizes() {
    let sized = |resources: Value| pod(&json!({"containers": [{"name": "c", "image": "i", "resources": resources}]}));
    let old = sized(json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}));
    let check = |new: &Value, expected: &[&str]| assert_eq!(texts(&validate_resize(new, &old)), expected);
    check(&sized(json!({"requests": {"cpu": "2"}, "limits": {"memory": "2Gi"}})), &[]);
    check(
        &sized(json!({"requests": {"cpu": "1", "memory": "1Gi"}})),
        &["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"],
    );
    check(
        &sized(
            json!({"requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1"}, "limits": {"memory": "1Gi"}}),
        ),
        &["spec: Forbidden: only cpu and memory resources are mutable"],
    );
    check(
        &pod(&json!({})),
        &[
            "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing",
            "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
            "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
        ],
    );
    let mut other = old.clone();
    other["spec"]["containers"][0]["name"] = json!("d");
    check(&other, &["spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"]);
    let mut mirror = old.clone();
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    assert_eq!(texts(&validate_resize(&old, &mirror)), ["[]: Forbidden: static pods cannot be resized"]);
}

#[test]
fn statuses() {
    // C3.17
    let with = |spec: Value, status: Value| {
        let mut made = pod(&spec);
        made["status"] = status;
        made
    };
    let ended = json!({"qosClass": "BestEffort", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 1}}}]});
    let runs = json!({"qosClass": "BestEffort", "containerStatuses": [{"name": "c", "state": {"running": {}}}]});
    let refused = "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
    let ruled = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}]});
    for (spec, expected) in [
        (json!({"restartPolicy": "Never"}), vec![refused]),
        (json!({"restartPolicy": "OnFailure"}), vec![]),
        (json!({}), vec![]),
        (ruled, vec![]),
    ] {
        assert_eq!(
            texts(&validate_status(&with(spec.clone(), runs.clone()), &with(spec.clone(), ended.clone()))),
            expected,
            "{spec}"
        );
    }
    let new = json!({"qosClass": "Burstable", "nominatedNodeName": "n", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
        "hostIP": "10.0.0.3", "hostIPs": [{"ip": "10.0.0.4"}], "conditions": [{"type": "a/b/c", "observedGeneration": -1}]});
    let found = texts(&validate_status(&with(json!({"nodeName": "n"}), new), &with(json!({"nodeName": "n"}), ended)));
    assert_eq!(found[0], "status.conditions[0].observedGeneration: Invalid value: -1: must be a non-negative integer");
    assert!(
        found[1].starts_with("status.conditions[0].Type: Invalid value: \"a/b/c\": a valid label key must consist")
    );
    assert_eq!(
        found[2..],
        [
            "status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node",
            "status.qosClass: Invalid value: \"Burstable\": field is immutable",
            "status.podIPs: Invalid value: [{\"ip\":\"10.0.0.1\"},{\"ip\":\"10.0.0.2\"}]: may specify no more than one IP for each IP family",
            "status.hostIPs[0].ip: Invalid value: \"10.0.0.4\": must be equal to `hostIP`",
        ]
    );
}
