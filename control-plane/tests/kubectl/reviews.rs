//! Questions about users and their rights, and the paths of the API server that are no resource.

use std::process::Output;

use serde_json::{Value, json};

use super::whole::{Whole, failed, succeeded};

/// Asks as the administrator; `kubectl create --raw` sends the file as it is.
fn try_ask(whole: &Whole, path: &str, body: &Value) -> Output {
    let file = whole.file("review.json", &body.to_string());
    whole.try_kubectl(&format!("create --raw {path} -f {}", file.display()))
}

fn ask(whole: &Whole, path: &str, body: &Value) -> Value {
    serde_json::from_str(&succeeded(path, &try_ask(whole, path, body))).unwrap()
}

#[test]
fn tokens_and_rights_are_reviewed() {
    let whole = Whole::start();
    let raw = |path: &str| -> Value { serde_json::from_str(&whole.kubectl(&format!("get --raw {path}"))).unwrap() };
    // C1.11, C1.12: what there is can only be created.
    for (version, kinds) in [
        ("authentication.k8s.io/v1", &["selfsubjectreviews", "tokenreviews"][..]),
        (
            "authorization.k8s.io/v1",
            &[
                "localsubjectaccessreviews",
                "selfsubjectaccessreviews",
                "selfsubjectrulesreviews",
                "subjectaccessreviews",
            ],
        ),
    ] {
        let found = raw(&format!("/apis/{version}"))["resources"].as_array().unwrap().clone();
        let mut names: Vec<&str> = found.iter().map(|kind| kind["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, kinds);
        assert!(found.iter().all(|kind| kind["verbs"] == json!(["create"])), "{found:?}");
        for kind in kinds.iter().filter(|kind| !kind.starts_with("local")) {
            let refused = whole.kubectl_fails(&format!("get --raw /apis/{version}/{kind}"));
            assert!(refused.contains("the server does not allow this method"), "{kind}: {refused}");
        }
    }

    // C1.11
    let review = |spec: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    whole.kubectl("create serviceaccount robot");
    let token = whole.kubectl("create token robot").trim().to_owned();
    let status = ask(&whole, path, &review(json!({"token": token})))["status"].clone();
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot");
    let groups = ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"];
    assert_eq!(status["user"]["groups"], json!(groups));
    assert!(!status["user"]["uid"].as_str().unwrap().is_empty() && status["user"]["extra"].is_object(), "{status}");
    assert_eq!(status["audiences"].as_array().map(Vec::len), Some(1));
    let other =
        ask(&whole, path, &review(json!({"token": token, "audiences": ["https://elsewhere"]})))["status"].clone();
    assert!(other["authenticated"] != true && other["error"].is_string(), "{other}");
    let vault = whole.kubectl("create token robot --audience=vault").trim().to_owned();
    let met = ask(&whole, path, &review(json!({"token": vault, "audiences": ["vault", "x"]})))["status"].clone();
    assert_eq!((&met["authenticated"], &met["audiences"]), (&json!(true), &json!(["vault"])));
    let bad = ask(&whole, path, &review(json!({"token": "nonsense"})))["status"].clone();
    assert!(bad["authenticated"] != true && bad["error"].is_string(), "{bad}");
    whole.kubectl("delete serviceaccount robot");
    let gone = ask(&whole, path, &review(json!({"token": token})))["status"].clone();
    assert!(gone["authenticated"] != true, "{gone}");
    let me = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let me = ask(&whole, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &me);
    assert_eq!(me["status"]["userInfo"]["username"], "kubernetes-admin");
    assert!(me["status"]["userInfo"]["groups"].as_array().unwrap().contains(&json!("system:authenticated")));

    // C1.12
    whole.kubectl("create role reader --verb=get --resource=pods");
    whole.kubectl("create rolebinding reader --role=reader --user=ann");
    let of = |kind: &str, spec: Value| json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec});
    let base = "/apis/authorization.k8s.io/v1";
    let pods = |namespace: &str, verb: &str| json!({"namespace": namespace, "verb": verb, "resource": "pods"});
    let subject = |attributes: Value| {
        let review = of("SubjectAccessReview", json!({"user": "ann", "resourceAttributes": attributes}));
        ask(&whole, &format!("{base}/subjectaccessreviews"), &review)["status"].clone()
    };
    let yes = subject(pods("default", "get"));
    assert_eq!(yes["allowed"], true);
    assert_eq!(yes["reason"], r#"RBAC: allowed by RoleBinding "reader/default" of Role "reader" to User "ann""#);
    assert_eq!(subject(pods("default", "delete"))["allowed"], false);
    assert_eq!(subject(pods("kube-system", "get"))["allowed"], false);
    let page = json!({"user": "ann", "groups": ["system:authenticated"], "nonResourceAttributes": {"path": "/version", "verb": "get"}});
    let page = ask(&whole, &format!("{base}/subjectaccessreviews"), &of("SubjectAccessReview", page));
    assert_eq!(page["status"]["allowed"], true, "{page}");
    for spec in [
        json!({"user": "ann"}),
        json!({"user": "ann", "resourceAttributes": {}, "nonResourceAttributes": {"path": "/", "verb": "get"}}),
        json!({"resourceAttributes": {"verb": "get"}}),
    ] {
        let refused = try_ask(&whole, &format!("{base}/subjectaccessreviews"), &of("SubjectAccessReview", spec));
        assert!(failed("SubjectAccessReview", &refused).contains("is invalid"), "{refused:?}");
    }
    let local = |namespace: &str| {
        let spec = json!({"user": "ann", "resourceAttributes": pods("default", "get")});
        let mut review = of("LocalSubjectAccessReview", spec);
        review["metadata"] = json!({"namespace": namespace});
        try_ask(&whole, &format!("{base}/namespaces/{namespace}/localsubjectaccessreviews"), &review)
    };
    assert!(succeeded("here", &local("default")).contains("\"allowed\":true"));
    assert!(failed("there", &local("kube-system")).contains("must match metadata.namespace"));
    let own = of("SelfSubjectAccessReview", json!({"resourceAttributes": pods("x", "delete")}));
    let own = ask(&whole, &format!("{base}/selfsubjectaccessreviews"), &own);
    assert_eq!(own["status"]["allowed"], true, "{own}");
    let rules =
        |spec: Value| try_ask(&whole, &format!("{base}/selfsubjectrulesreviews"), &of("SelfSubjectRulesReview", spec));
    let all: Value = serde_json::from_str(&succeeded("rules", &rules(json!({"namespace": "default"})))).unwrap();
    assert!(all["status"]["resourceRules"].is_array() && all["status"]["nonResourceRules"].is_array(), "{all}");
    assert!(failed("no namespace", &rules(json!({}))).contains("no namespace on request"));
}

#[test]
fn the_server_tells_its_version_and_health() {
    // C2.4
    let whole = Whole::start();
    let raw = |path: &str| whole.kubectl(&format!("get --raw {path}"));
    let json = |path: &str| -> Value { serde_json::from_str(&raw(path)).unwrap() };
    let version = json("/version");
    for field in [
        "major",
        "minor",
        "gitVersion",
        "gitCommit",
        "gitTreeState",
        "buildDate",
        "goVersion",
        "compiler",
        "platform",
        "emulationMajor",
        "emulationMinor",
        "minCompatibilityMajor",
        "minCompatibilityMinor",
    ] {
        assert!(version[field].is_string(), "{field}: {version}");
    }
    let is_number = |text: &Value| text.as_str().is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    assert!(version["major"] == "1" && is_number(&version["minor"]), "{version}");
    assert!(
        version["gitVersion"].as_str().unwrap().starts_with(&format!("v1.{}.", version["minor"].as_str().unwrap()))
    );
    for path in ["healthz", "livez", "readyz"] {
        assert_eq!(raw(&format!("/{path}")), "ok");
        let verbose = raw(&format!("/{path}?verbose"));
        assert_eq!(verbose, format!("[+]ping ok\n[+]storage ok\n{path} check passed\n"));
        let excluded = raw(&format!("/{path}?verbose&exclude=storage&exclude=ping"));
        assert_eq!(excluded, format!("[+]ping excluded: ok\n[+]storage excluded: ok\n{path} check passed\n"));
        let odd = raw(&format!("/{path}?verbose&exclude=moon"));
        assert!(odd.contains("warn: some health checks cannot be excluded: no matches for \"moon\"\n"), "{odd}");
        assert_eq!(raw(&format!("/{path}/ping")), "ok");
        whole.kubectl_fails(&format!("get --raw /{path}/moon"));
    }
    assert!(raw("/metrics").contains("# TYPE "));
    let documents = json("/.well-known/openid-configuration");
    assert!(documents["jwks_uri"].as_str().unwrap().ends_with("/openid/v1/jwks"), "{documents}");
    assert!(json("/openid/v1/jwks")["keys"][0]["kid"].is_string());
    let paths = json("/")["paths"].as_array().unwrap().clone();
    for path in [
        "/api",
        "/api/v1",
        "/apis",
        "/apis/apps",
        "/apis/apps/v1",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v3",
        "/readyz",
        "/version",
    ] {
        assert!(paths.contains(&path.into()), "{path} is missing in {paths:?}");
    }
}

#[test]
fn kinds_have_their_short_names_and_categories() {
    // C2.5
    let whole = Whole::start();
    let listed = whole.kubectl("api-resources --no-headers -o wide");
    let short = |name: &str, group: &str| -> String {
        let lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut of_name = lines.filter(|words| words[0] == name);
        let words = of_name.find(|words| words.contains(&group)).unwrap_or_else(|| panic!("no {name}"));
        if words[1] == group { String::new() } else { words[1].to_owned() }
    };
    for (name, group, expected) in [
        ("pods", "v1", "po"),
        ("services", "v1", "svc"),
        ("configmaps", "v1", "cm"),
        ("nodes", "v1", "no"),
        ("namespaces", "v1", "ns"),
        ("events", "v1", "ev"),
        ("events", "events.k8s.io/v1", "ev"),
        ("endpoints", "v1", "ep"),
        ("persistentvolumes", "v1", "pv"),
        ("persistentvolumeclaims", "v1", "pvc"),
        ("serviceaccounts", "v1", "sa"),
        ("replicationcontrollers", "v1", "rc"),
        ("resourcequotas", "v1", "quota"),
        ("limitranges", "v1", "limits"),
        ("secrets", "v1", ""),
        ("deployments", "apps/v1", "deploy"),
        ("replicasets", "apps/v1", "rs"),
        ("statefulsets", "apps/v1", "sts"),
        ("daemonsets", "apps/v1", "ds"),
        ("jobs", "batch/v1", ""),
        ("cronjobs", "batch/v1", "cj"),
        ("horizontalpodautoscalers", "autoscaling/v2", "hpa"),
        ("poddisruptionbudgets", "policy/v1", "pdb"),
        ("ingresses", "networking.k8s.io/v1", "ing"),
        ("networkpolicies", "networking.k8s.io/v1", "netpol"),
        ("ipaddresses", "networking.k8s.io/v1", "ip"),
        ("storageclasses", "storage.k8s.io/v1", "sc"),
        ("priorityclasses", "scheduling.k8s.io/v1", "pc"),
        ("certificatesigningrequests", "certificates.k8s.io/v1", "csr"),
        ("endpointslices", "discovery.k8s.io/v1", ""),
        ("leases", "coordination.k8s.io/v1", ""),
    ] {
        assert_eq!(short(name, group), expected, "{name} {group}");
    }
    let all = whole.kubectl("api-resources --categories=all -o name");
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(
        all,
        [
            "cronjobs.batch",
            "daemonsets.apps",
            "deployments.apps",
            "horizontalpodautoscalers.autoscaling",
            "jobs.batch",
            "pods",
            "replicasets.apps",
            "replicationcontrollers",
            "services",
            "statefulsets.apps",
        ]
    );
}
