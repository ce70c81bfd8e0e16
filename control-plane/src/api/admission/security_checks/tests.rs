//! What the levels refuse, and the words for it (C5.16).

use serde_json::json;

use super::*;

#[track_caller]
fn found(level: Level, minor: Option<u32>, spec: &Value, expected: &[&str]) {
    let faults = check(level, minor, &json!({}), spec);
    let texts: Vec<String> = faults.iter().map(|fault| format!("{} ({})", fault.reason, fault.detail)).collect();
    assert_eq!(texts, expected, "{spec}");
}

#[test]
fn restricted_pods_say_what_they_do_without() {
    // C5.16
    found(
        Level::Restricted,
        None,
        &json!({"containers": [{"name": "c"}]}),
        &[
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
            "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
            "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
            "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        ],
    );
    let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
    found(Level::Restricted, None, &good, &[]);
    let mut bad = good.clone();
    bad["volumes"] = json!([{"name": "v", "nfs": {}}, {"name": "w", "hostPath": {}}]);
    bad["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["CHOWN"]);
    bad["containers"][0]["securityContext"]["runAsUser"] = json!(0);
    found(
        Level::Restricted,
        Some(30),
        &bad,
        &[
            "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
            "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\")",
            "runAsUser=0 (container \"c\" must not set runAsUser=0)",
        ],
    );
}

#[test]
fn baseline_pods_keep_off_the_host() {
    // C5.16
    found(Level::Baseline, None, &json!({"containers": [{"name": "c"}]}), &[]);
    let spec = json!({"hostNetwork": true, "hostPID": true, "volumes": [{"name": "v", "hostPath": {}}],
        "securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}], "seLinuxOptions": {"type": "spc_t", "user": "u"}},
        "containers": [
            {"name": "a", "ports": [{"hostPort": 80}], "securityContext": {"privileged": true, "procMount": "Unmasked", "capabilities": {"add": ["SYS_ADMIN"]}}},
            {"name": "b", "livenessProbe": {"tcpSocket": {"host": "h"}}, "securityContext": {"privileged": true, "seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "Unconfined"}}}]});
    found(
        Level::Baseline,
        None,
        &spec,
        &[
            "forbidden AppArmor profile (container \"b\" must not set AppArmor profile type to \"Unconfined\")",
            "non-default capabilities (container \"a\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
            "host namespaces (hostNetwork=true, hostPID=true)",
            "hostPath volumes (volume \"v\")",
            "hostPort (container \"a\" uses hostPort 80)",
            "probe or lifecycle host (container \"b\" uses probe or lifecycle host \"h\")",
            "privileged (containers \"a\", \"b\" must not set securityContext.privileged=true)",
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
            "seccompProfile (container \"b\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            "forbidden sysctls (kernel.msgmax)",
        ],
    );
    found(Level::Privileged, None, &spec, &[]);
}

#[test]
fn versions_and_user_namespaces_make_a_difference() {
    let spec = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}, "containers": []});
    found(Level::Baseline, Some(31), &spec, &["forbidden sysctls (net.ipv4.tcp_rmem)"]);
    found(Level::Baseline, Some(32), &spec, &[]);
    let spec = json!({"hostUsers": false, "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}, "containers": [
        {"name": "c", "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
    found(Level::Restricted, Some(35), &spec, &[]);
    found(
        Level::Restricted,
        Some(34),
        &spec,
        &[
            "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
            "runAsUser=0 (container \"c\" must not set runAsUser=0)",
        ],
    );
}
