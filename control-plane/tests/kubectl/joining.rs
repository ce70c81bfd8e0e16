//! How a node joins, from the control plane's side: tokens, cluster-info, certificate requests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};
use stoker_control_plane::auth::{bootstrap_token, ca_hash};

use super::whole::{Whole, failed, succeeded};

/// A request as PEM, and its key.
fn request(name: &str, organizations: &str, alternatives: &[&str]) -> (String, String) {
    let mut params =
        CertificateParams::new(alternatives.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organizations);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    (params.serialize_request(&key).unwrap().pem().unwrap(), key.serialize_pem())
}

fn csr(name: &str, signer: &str, usages: &[&str], pem: &str) -> String {
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": STANDARD.encode(pem), "signerName": signer, "usages": usages,
            "username": "somebody else", "groups": ["system:masters"]},
    })
    .to_string()
}

fn certificate(whole: &Whole, name: &str) -> Option<String> {
    let csr = whole.object(&format!("get csr {name}"));
    let text = csr["status"]["certificate"].as_str()?.to_owned();
    Some(String::from_utf8(STANDARD.decode(text).unwrap()).unwrap())
}

fn conditions(whole: &Whole, name: &str) -> Vec<(String, String, String)> {
    let csr = whole.object(&format!("get csr {name}"));
    let part = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    let all = csr["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().map(|c| (part(c, "type"), part(c, "reason"), part(c, "message"))).collect()
}

/// The group of bootstrap tokens for nodes.
const NODE_TOKENS: &str = "system:bootstrappers:kubeadm:default-node-token";
const CLIENT: &[&str] = &["digital signature", "client auth"];
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

#[test]
fn a_node_joins_with_a_token_and_renews_its_certificate_by_itself() {
    // A17.1, C5.1, C6.1, C6.2, C6.3, C6.4
    let whole = Whole::start();
    let command = whole.program(&["token", "create", "--ttl=2h", "--print-join-command"]);
    let words: Vec<&str> = command.split_whitespace().collect();
    let ca = std::fs::read_to_string(whole.path().join("pki/ca.crt")).unwrap();
    let hash = ca_hash(&ca).unwrap();
    let host = whole.server.trim_start_matches("https://");
    let token = words[4].to_owned();
    assert_eq!(words, ["kubeadm", "join", host, "--token", &token, "--discovery-token-ca-cert-hash", &hash]);
    let (id, secret) = bootstrap_token::split_token(&token).unwrap();

    // What anybody may read, and that it comes from a holder of the token.
    let info = || -> Value {
        let (code, body) = whole.anonymously("/api/v1/namespaces/kube-public/configmaps/cluster-info");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let signature = format!("jws-kubeconfig-{id}");
    whole.until("the signature", || info()["data"][&signature].is_string());
    let info = info();
    let content = info["data"]["kubeconfig"].as_str().unwrap();
    assert_eq!(info["data"][&signature], bootstrap_token::detached_signature(content, id, secret));
    assert!(content.contains(&STANDARD.encode(&ca)) && content.contains(&whole.server), "{content}");
    for other in [
        "/api/v1/namespaces/kube-public/configmaps/kube-root-ca.crt",
        "/api/v1/namespaces/kube-system/configmaps/kubeadm-config",
        "/api/v1/namespaces/kube-public/configmaps",
        "/api/v1/nodes",
        "/api",
        "/metrics",
    ] {
        let (code, body) = whole.anonymously(other);
        assert!(code == 403 && body.contains("system:anonymous"), "{other}: {code} {body}");
    }
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(whole.anonymously(path).0, 200, "{path}");
    }

    // Only tokens for signing sign.
    let silent = whole.program(&["token", "create", "--usages=authentication"]);
    let silent = silent.split('.').next().unwrap().to_owned();

    // Who may do what for a join, by the names that kubeadm looks for.
    for (role, namespace) in [
        ("kubeadm:bootstrap-signer-clusterinfo", "kube-public"),
        ("kubeadm:nodes-kubeadm-config", "kube-system"),
        ("kubeadm:kubelet-config", "kube-system"),
        ("kube-proxy", "kube-system"),
    ] {
        whole.kubectl(&format!("get role {role} -n {namespace}"));
        let binding = whole.object(&format!("get rolebinding {role} -n {namespace}"));
        assert_eq!(binding["roleRef"]["name"], role);
        let subject = if namespace == "kube-public" { "system:anonymous" } else { NODE_TOKENS };
        assert!(binding["subjects"].to_string().contains(&format!("\"{subject}\"")), "{binding}");
    }
    for (binding, role, subject) in [
        ("kubeadm:get-nodes", "kubeadm:get-nodes", NODE_TOKENS),
        ("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", NODE_TOKENS),
        (
            "kubeadm:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            NODE_TOKENS,
        ),
        (
            "kubeadm:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            "system:nodes",
        ),
        ("kubeadm:cluster-admins", "cluster-admin", "kubeadm:cluster-admins"),
        ("kubeadm:apiserver-kubelet-client", "system:kubelet-api-admin", "kube-apiserver-kubelet-client"),
        ("kubeadm:node-proxier", "system:node-proxier", "kube-proxy"),
    ] {
        let found = whole.object(&format!("get clusterrolebinding {binding}"));
        assert_eq!(found["roleRef"]["name"], role, "{binding}");
        assert!(found["subjects"].to_string().contains(&format!("\"{subject}\"")), "{found}");
        whole.kubectl(&format!("get clusterrole {role}"));
    }

    // What the token may read, and no more.
    for map in ["kubeadm-config", "kubelet-config", "kube-proxy"] {
        let get = format!("get configmap -n kube-system {map} -o json");
        let map: Value = serde_json::from_str(&succeeded(&get, &whole.kubectl_as(&token, &get))).unwrap();
        assert!(map["data"].as_object().is_some_and(|data| !data.is_empty()), "{map}");
    }
    assert!(failed("a node", &whole.kubectl_as(&token, "get node n1")).contains("nodes \"n1\" not found"));
    failed("secrets", &whole.kubectl_as(&token, "get secrets -A"));
    let whoami = succeeded("whoami", &whole.kubectl_as(&token, "auth whoami -o json"));
    assert!(whoami.contains(&format!("system:bootstrap:{id}")), "{whoami}");
    assert!(whoami.contains("system:bootstrappers:kubeadm:default-node-token"), "{whoami}");
    let wrong = format!("{id}.0000000000000000");
    assert!(failed("another secret", &whole.kubectl_as(&wrong, "get node n1")).contains("Unauthorized"));

    // The node's first certificate.
    let (pem, key) = request("system:node:n1", "system:nodes", &[]);
    let file = whole.file("csr.json", &csr("first", NODE_CLIENT, CLIENT, &pem));
    let create = format!("create -f {}", file.display());
    succeeded(&create, &whole.kubectl_as(&token, &create));
    whole.until("the certificate", || certificate(&whole, "first").is_some());
    let stored = whole.object("get csr first");
    assert_eq!(stored["spec"]["username"], format!("system:bootstrap:{id}"));
    assert!(!stored["spec"]["groups"].to_string().contains("masters"), "{stored}");
    let approved = "Auto approving kubelet client certificate after SubjectAccessReview.";
    assert_eq!(conditions(&whole, "first"), [("Approved".into(), "AutoApproved".into(), approved.into())]);
    assert!(whole.kubectl("get csr first").contains("Approved,Issued"));

    // With it the node is itself, and may have its next one.
    let (crt, key) = (whole.file("n1.crt", &certificate(&whole, "first").unwrap()), whole.file("n1.key", &key));
    let credentials = [
        format!("--server={}", whole.server),
        format!("--certificate-authority={}", whole.path().join("pki/ca.crt").display()),
        format!("--client-certificate={}", crt.display()),
        format!("--client-key={}", key.display()),
    ];
    let credentials: Vec<&str> = credentials.iter().map(String::as_str).collect();
    let node = whole.file("node.json", r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}"#);
    let create = format!("create -f {}", node.display());
    succeeded("its node", &whole.kubectl_with(&credentials, &create));
    succeeded("its node", &whole.kubectl_with(&credentials, "get node n1"));
    failed("another's node", &whole.kubectl_with(&credentials, "get node n2"));
    for map in ["kubeadm-config", "kubelet-config"] {
        succeeded(map, &whole.kubectl_with(&credentials, &format!("get configmap -n kube-system {map}")));
    }
    let info = whole.kubectl("get cm -n kube-public cluster-info -o yaml");
    assert!(info.contains(&signature) && !info.contains(&format!("jws-kubeconfig-{silent}")), "{info}");
    let (pem, _) = request("system:node:n1", "system:nodes", &[]);
    let file = whole.file("csr.json", &csr("second", NODE_CLIENT, CLIENT, &pem));
    succeeded("the next", &whole.kubectl_with(&credentials, &format!("create -f {}", file.display())));
    whole.until("the next certificate", || certificate(&whole, "second").is_some());
    assert!(conditions(&whole, "second")[0].2.contains("self kubelet client certificate"));
    // Another's it may not.
    let (pem, _) = request("system:node:n2", "system:nodes", &[]);
    let file = whole.file("csr.json", &csr("foreign", NODE_CLIENT, CLIENT, &pem));
    succeeded("another's", &whole.kubectl_with(&credentials, &format!("create -f {}", file.display())));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(whole.kubectl("get csr foreign").contains("Pending"));

    // The commands about tokens.
    assert!(whole.program(&["token", "list"]).contains(&token));
    whole.program(&["token", "delete", id, &silent]);
    assert!(!whole.program(&["token", "list"]).contains(&token));
    whole
        .until("the signature to go", || !whole.kubectl("get cm -n kube-public cluster-info -o yaml").contains("jws-"));
    assert!(failed("a deleted token", &whole.kubectl_as(&token, "get node n1")).contains("Unauthorized"));
    let brief = whole.program(&["token", "create", "--ttl=2s"]);
    let name = format!("bootstrap-token-{}", brief.split('.').next().unwrap());
    whole.until("the expired token to go", || !whole.kubectl("get secrets -n kube-system -o name").contains(&name));
}

#[test]
fn certificates_are_approved_by_people_and_only_what_a_signer_takes_is_signed() {
    // C1.13, C4.22, A17.3, D1.14
    let whole = Whole::start();
    let apply = |name: &str, signer: &str, usages: &[&str], pem: &str| {
        let file = whole.file("csr.json", &csr(name, signer, usages, pem));
        format!("create -f {}", file.display())
    };
    let serving = ["digital signature", "server auth"];
    let (pem, _) = request("system:node:n1", "system:nodes", &["n1", "192.0.2.1"]);
    whole.kubectl(&apply("serving", "kubernetes.io/kubelet-serving", &serving, &pem));
    assert!(whole.kubectl("get csr serving").contains("Pending"));
    let as_node = "--as=system:node:n1 --as-group=system:nodes";
    assert!(
        whole
            .kubectl_fails(&format!("certificate approve serving {as_node}"))
            .contains("cannot update resource \"certificatesigningrequests/approval\"")
    );
    // Who may update the sub-resource still needs the right for the signer.
    whole.kubectl("create clusterrole half --verb=get,update --resource=certificatesigningrequests,certificatesigningrequests/approval");
    whole.kubectl("create clusterrolebinding half --clusterrole=half --user=bob");
    let refused = whole.kubectl_fails("certificate approve serving --as=bob");
    assert!(
        refused.contains("user not permitted to approve requests with signerName \"kubernetes.io/kubelet-serving\""),
        "{refused}"
    );
    whole.kubectl(
        "create clusterrolebinding whole --clusterrole=system:certificates.k8s.io:kubelet-serving-approver --user=bob",
    );
    whole.kubectl("certificate approve serving --as=bob");
    whole.until("the certificate", || certificate(&whole, "serving").is_some());
    assert_eq!(conditions(&whole, "serving")[0].1, "KubectlApprove");
    assert!(whole.kubectl("describe csr serving").contains("Approved,Issued"));

    let (pem, _) = request("ann", "staff", &[]);
    whole.kubectl(&apply("ann", "kubernetes.io/kube-apiserver-client", CLIENT, &pem));
    whole.kubectl("certificate approve ann");
    whole.until("ann's certificate", || certificate(&whole, "ann").is_some());
    whole.kubectl(&apply("denied", "kubernetes.io/kube-apiserver-client", CLIENT, &pem));
    whole.kubectl("certificate deny denied");
    assert_eq!(conditions(&whole, "denied")[0].1, "KubectlDeny");
    assert!(whole.kubectl_fails("certificate approve denied").contains("is already Denied"));
    whole.kubectl(&apply("wrong", "kubernetes.io/kubelet-serving", &serving, &pem));
    whole.kubectl("certificate approve wrong");
    whole.until("the failure", || conditions(&whole, "wrong").len() == 2);
    assert_eq!(conditions(&whole, "wrong")[1].1, "SignerValidationFailure");
    assert!(whole.kubectl("get csr wrong").contains("Approved,Failed"));
    // Another's signer is left to it.
    whole.kubectl(&apply("foreign", "example.com/own", CLIENT, &pem));
    whole.kubectl("certificate approve foreign");
    assert_eq!(certificate(&whole, "foreign"), None);

    let (masters, _) = request("eve", "system:masters", &[]);
    let refused = whole.kubectl_fails(&apply("masters", "kubernetes.io/kube-apiserver-client", CLIENT, &masters));
    assert!(refused.contains("signer with system:masters group is not allowed"), "{refused}");
    for (signer, usages, pem, told) in [
        ("kubernetes.io/legacy-unknown", CLIENT, pem.as_str(), "the legacy signerName is not allowed"),
        ("nonsense", CLIENT, &pem, "spec.signerName: Invalid value"),
        ("example.com/own", &["juggling"], &pem, "spec.usages[0]: Unsupported value: \"juggling\""),
        ("example.com/own", &[], &pem, "spec.usages: Required value"),
        ("example.com/own", CLIENT, "no PEM", "PEM block type must be CERTIFICATE REQUEST"),
    ] {
        let refused = whole.kubectl_fails(&apply("bad", signer, usages, pem));
        assert!(refused.contains(told), "{refused}");
    }
    // A request is what it was.
    let patch = r#"patch csr ann --type=merge -p {"spec":{"usages":["any"]},"status":{"certificate":null}}"#;
    whole.kubectl(patch);
    assert_eq!(whole.object("get csr ann")["spec"]["usages"], json!(CLIENT));
    assert!(certificate(&whole, "ann").is_some());
}
