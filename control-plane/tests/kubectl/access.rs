//! The default roles as users meet them, and that nobody gives away what they have not.

use super::whole::Whole;

#[test]
fn default_roles_grant_what_they_should_and_nobody_grants_more_than_they_have() {
    // C5.2, C5.5, C5.14, C3.22, D1.26
    let whole = Whole::start();
    whole.kubectl("create namespace shop");
    for (user, role) in [("vera", "view"), ("edith", "edit"), ("adam", "admin")] {
        whole.kubectl(&format!("create rolebinding {user} -n shop --clusterrole={role} --user={user}"));
    }
    let can = |user: &str, what: &str| {
        let output = whole.try_kubectl(&format!("auth can-i {what} -n shop --as={user}"));
        String::from_utf8_lossy(&output.stdout).trim() == "yes"
    };
    whole.until("the rules of the parts to be in the whole", || {
        can("adam", "create rolebindings") && can("vera", "get pods")
    });
    for (what, vera, edith, adam) in [
        ("get pods", true, true, true),
        ("get pods/log", true, true, true),
        ("get pods --subresource=log", true, true, true),
        ("watch deployments.apps", true, true, true),
        ("get secrets", false, true, true),
        ("get roles", false, false, true),
        ("create pods", false, true, true),
        ("create pods --subresource=exec", false, true, true),
        ("create serviceaccounts --subresource=token", false, true, true),
        ("impersonate serviceaccounts", false, true, true),
        ("update leases.coordination.k8s.io", false, true, true),
        ("update endpoints", false, false, false),
        ("update resourcequotas", false, false, false),
        ("create rolebindings", false, false, true),
        ("create localsubjectaccessreviews.authorization.k8s.io", false, false, true),
        ("delete namespace shop", false, false, false),
        ("get nodes", false, false, false),
    ] {
        for (user, expected) in [("vera", vera), ("edith", edith), ("adam", adam)] {
            assert_eq!(can(user, what), expected, "{user} {what}");
        }
    }
    assert!(!can("nobody", "get pods"));
    assert!(can("nobody", "create selfsubjectaccessreviews.authorization.k8s.io"));
    assert!(can("nobody", "get /apis"));
    assert!(!can("nobody", "get /metrics"));
    let listed = whole.kubectl("auth can-i --list -n shop --as=vera");
    assert!(listed.contains("selfsubjectreviews.authentication.k8s.io") && listed.contains("/openapi/*"), "{listed}");

    // A role that is labelled so becomes part of the default ones.
    let mine = whole.file(
        "mine.yaml",
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: mine, labels: \
         {rbac.authorization.k8s.io/aggregate-to-view: 'true'}}\nrules: [{verbs: [get], apiGroups: [shop.example.com], resources: [carts]}]",
    );
    whole.kubectl(&format!("apply -f {}", mine.display()));
    let rules = || whole.kubectl("get clusterrole view -o yaml");
    whole.until("the rule to come", || rules().contains("carts"));
    whole.kubectl("delete clusterrole mine");
    whole.until("the rule to go", || !rules().contains("carts"));

    // An administrator of a namespace gives only what they have.
    whole.kubectl("create role reader -n shop --verb=get --resource=pods --as=adam");
    whole.kubectl("create rolebinding reader -n shop --role=reader --user=bob --as=adam");
    let refused = whole.kubectl_fails("create role more -n shop --verb=get,list --resource=nodes,pods --as=adam");
    assert!(
        refused.contains("user \"adam\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held"),
        "{refused}"
    );
    let refused =
        whole.kubectl_fails("create rolebinding more -n shop --clusterrole=cluster-admin --user=adam --as=adam");
    assert!(refused.contains(r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#), "{refused}");
    let refused = whole.kubectl_fails("create rolebinding none -n shop --clusterrole=missing --user=adam --as=adam");
    assert!(refused.contains("\"missing\" not found"), "{refused}");
    whole.kubectl("create clusterrole binder --verb=bind --resource=clusterroles --resource-name=cluster-admin");
    whole.kubectl("create rolebinding binder -n shop --clusterrole=binder --user=adam");
    whole.kubectl("create rolebinding more -n shop --clusterrole=cluster-admin --user=adam --as=adam");
    // By now adam may do everything there, and nothing elsewhere.
    whole.kubectl("create role more -n shop --verb=get --resource=secrets --as=adam");
    whole.kubectl_fails("create role more -n default --verb=get --resource=secrets --as=adam");
    let refused = whole.kubectl_fails("get pods -n default --as=vera");
    assert!(
        refused.contains(r#"User "vera" cannot list resource "pods" in API group "" in the namespace "default""#),
        "{refused}"
    );
}

#[test]
fn a_front_proxy_is_believed_and_nobody_else() {
    // C5.17
    let whole = Whole::start();
    let trust = whole.object("get configmap extension-apiserver-authentication -n kube-system")["data"].clone();
    let file = |name: &str| std::fs::read_to_string(whole.path().join("pki").join(name)).unwrap();
    assert_eq!(trust["client-ca-file"], file("ca.crt"));
    assert_eq!(trust["requestheader-client-ca-file"], file("front-proxy-ca.crt"));
    for (key, list) in [
        ("allowed-names", r#"["front-proxy-client"]"#),
        ("username-headers", r#"["X-Remote-User"]"#),
        ("uid-headers", r#"["X-Remote-Uid"]"#),
        ("group-headers", r#"["X-Remote-Group"]"#),
        ("extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
    ] {
        assert_eq!(trust[format!("requestheader-{key}")], list, "{key}");
    }
    // Who may read it: those that the role is bound to.
    let reader = "auth can-i get configmap/extension-apiserver-authentication -n kube-system --as=system:serviceaccount:default:ext";
    assert!(!whole.try_kubectl(reader).status.success());
    whole.kubectl("create rolebinding ext -n kube-system --role=extension-apiserver-authentication-reader --serviceaccount=default:ext");
    whole.until("the role to hold", || whole.try_kubectl(reader).status.success());

    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let ask = |certificate: &str, headers: &[&str]| -> serde_json::Value {
        let mut command = std::process::Command::new("curl");
        command.args(["-sS", "--cacert"]).arg(whole.path().join("pki/ca.crt"));
        if !certificate.is_empty() {
            let file = |end: &str| whole.path().join(format!("pki/{certificate}.{end}"));
            command.arg("--cert").arg(file("crt")).arg("--key").arg(file("key"));
        }
        for header in headers {
            command.args(["-H", header]);
        }
        command.args(["-H", "Content-Type: application/json", "-d"]);
        command.arg(r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#);
        let output = command.arg(format!("{}{path}", whole.server)).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    };
    let ann = ["X-Remote-User: ann", "X-Remote-Group: staff", "X-Remote-Uid: u-1", "X-Remote-Extra-Scope: all"];
    let user = ask("front-proxy-client", &ann)["status"]["userInfo"].clone();
    assert_eq!((&user["username"], &user["uid"]), (&"ann".into(), &"u-1".into()), "{user}");
    assert_eq!(user["groups"], serde_json::json!(["staff", "system:authenticated"]));
    assert_eq!(user["extra"]["scope"], serde_json::json!(["all"]));
    // The headers of others count for nothing, and the proxy itself is nobody.
    let own = ask("apiserver-kubelet-client", &ann);
    assert_eq!(own["status"]["userInfo"]["username"], "kube-apiserver-kubelet-client", "{own}");
    assert_eq!(ask("", &ann)["code"], 403);
    assert_eq!(ask("front-proxy-client", &[])["code"], 401);
}
