//! What volumes show of objects and of the pod itself: every source, modes and owners of the files, tokens.

use k8s_openapi::api::core::v1::PodSecurityContext;
use serde_json::json;

use crate::node::{Builder, Node, condition, pod};
use crate::volumes::{SLEEP, end, exec, run, until_event, volume, with_group};

/// A certificate, as far as projections care.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

#[tokio::test]
async fn files_are_as_their_sources_say() {
    // A9.7, A9.9, A9.10
    let node = Node::start().await;
    node.api.put_binary("mixed", &[("text", "words"), ("other", "more")], &[("bytes", &[0, 255, 10])]);
    node.api.put_secret("password", &[("word", "sesame")]);
    node.api.put_bundle("ca", CERTIFICATE);
    let items = json!([
        {"key": "text", "path": "deep/down/text", "mode": 0o400},
        {"key": "text", "path": "again"},
        {"key": "bytes", "path": "bytes"},
    ]);
    let fields = json!([
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "notes", "mode": 0o400, "fieldRef": {"fieldPath": "metadata.annotations"}},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}},
        {"path": "memory", "resourceFieldRef": {"containerName": "main", "resource": "requests.memory", "divisor": "1Mi"}},
    ]);
    let sources = json!([
        {"configMap": {"name": "mixed", "items": [{"key": "text", "path": "map/text"}]}},
        {"secret": {"name": "password", "items": [{"key": "word", "path": "secret/word", "mode": 0o440}]}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"serviceAccountToken": {"path": "token"}},
        {"clusterTrustBundle": {"name": "ca", "path": "ca.pem"}},
        {"clusterTrustBundle": {"name": "none", "path": "none.pem", "optional": true}},
    ]);
    let mut web = pod("web")
        .container("main", SLEEP)
        .with(|c| {
            let amounts = json!({"limits": {"cpu": "1250m"}, "requests": {"memory": "32Mi"}});
            c.resources = Some(serde_json::from_value(amounts).unwrap());
        })
        .volume(volume("all", json!({"configMap": {"name": "mixed"}})), "/all")
        .volume(volume("chosen", json!({"configMap": {"name": "mixed", "items": items}})), "/chosen")
        .volume(volume("fields", json!({"downwardAPI": {"items": fields}})), "/fields")
        .volume(volume("joined", json!({"projected": {"sources": sources}})), "/joined")
        .volume(
            volume(
                "maybe",
                json!({"secret": {"secretName": "password", "optional": true,
                    "items": [{"key": "word", "path": "word"}, {"key": "absent", "path": "absent"}]}}),
            ),
            "/maybe",
        )
        .volume(volume("nothing", json!({"configMap": {"name": "absent", "optional": true}})), "/nothing");
    web.0.metadata.labels = Some([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into());
    web.0.metadata.annotations = Some([("say".to_owned(), "\"hi\"\n".to_owned())].into());
    let uid = run(&node, web).await;
    let printed =
        exec(&node, &uid, "cd /chosen; cat deep/down/text again; od -An -tx1 bytes; ls /all /nothing /maybe").await;
    assert_eq!(printed, "wordswords 00 ff 0a\n/all:\nbytes\nother\ntext\n\n/maybe:\nword\n\n/nothing:\n");
    let printed = exec(
        &node,
        &uid,
        "cd /fields; cat labels; echo; grep -v kubernetes.io/ notes; cat cpu; echo; cat memory; cat /joined/name",
    )
    .await;
    assert_eq!(printed, "a=\"1\"\nb=\"2\"\nsay=\"\\\"hi\\\"\\n\"\n1250\n32web");
    let files = "/all/text /chosen/deep/down/text /chosen/again /fields/labels /fields/notes /joined/map/text \
                 /joined/secret/word /joined/token /joined/ca.pem /maybe/word";
    let modes = exec(&node, &uid, &format!("stat -Lc %a:%u:%g {files}")).await;
    let expected =
        ["644", "400", "644", "644", "400", "644", "440", "644", "644", "644"].map(|mode| format!("{mode}:0:0\n"));
    assert_eq!(modes, expected.concat());
    assert_eq!(
        exec(&node, &uid, "cat /joined/ca.pem; ls /joined").await,
        format!("{CERTIFICATE}ca.pem\nmap\nname\nnone.pem\nsecret\ntoken\n")
    );
    assert_eq!(exec(&node, &uid, "grep -c ' /maybe tmpfs' /proc/mounts").await, "1\n");

    // Edited while the pod runs.
    node.api.change_pod(&uid, |pod| drop(pod.metadata.labels.as_mut().unwrap().insert("c".into(), "3".into())));
    for _ in 0..100 {
        if exec(&node, &uid, "cat /fields/labels").await.ends_with("c=\"3\"") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(exec(&node, &uid, "cat /fields/labels").await, "a=\"1\"\nb=\"2\"\nc=\"3\"");
    end(&node, &uid).await;

    // A key that is missing fails the mount; with it the pod starts.
    let needs = json!({"configMap": {"name": "later", "items": [{"key": "k", "path": "p"}]}});
    node.api.put_config_map("later", &[("other", "x")]);
    let waiting = node.api.create(pod("waiting").container("main", SLEEP).volume(volume("v", needs), "/v").0);
    let text = "FailedMount: MountVolume.SetUp failed for volume \"v\" : references non-existent config key: k";
    until_event(&node, &format!("waiting  {text}")).await;
    node.api.put_config_map("later", &[("k", "now")]);
    node.api.until(&waiting, "ready", |p| condition(p, "Ready")).await;
    assert_eq!(exec(&node, &waiting, "cat /v/p").await, "now");
    end(&node, &waiting).await;
    node.stop().await;
}

#[tokio::test]
async fn tokens_are_their_owners_alone() {
    // A9.11
    let node = Node::start().await;
    let sources = json!([
        {"serviceAccountToken": {"path": "plain"}},
        {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
        {"serviceAccountToken": {"path": "again", "audience": "vault", "expirationSeconds": 600}},
    ]);
    let tokens = |name: &str| {
        let projected = volume("tokens", json!({"projected": {"sources": sources}}));
        pod(name)
            .container("main", SLEEP)
            .volume(projected, "/tokens")
            .spec(|s| s.service_account_name = Some("robot".into()))
    };
    let as_user = |builder: Builder, user: i64, group: Option<i64>| {
        builder.spec(|s| {
            let context = PodSecurityContext { run_as_user: Some(user), fs_group: group, ..Default::default() };
            s.security_context = Some(context);
        })
    };
    let another = |builder: Builder| {
        builder.container("other", SLEEP).with(|c| {
            c.security_context = Some(serde_json::from_value(json!({"runAsUser": 2000})).unwrap());
        })
    };
    for (builder, expected) in [
        (tokens("root"), "644:0:0"),
        (as_user(tokens("user"), 1000, None), "600:1000:0"),
        (as_user(tokens("group"), 1000, Some(4242)), "640:1000:4242"),
        (with_group(tokens("group-alone"), 4242), "644:0:4242"),
        (another(as_user(tokens("users"), 1000, None)), "644:0:0"),
    ] {
        let name = builder.0.metadata.name.clone().unwrap();
        let uid = run(&node, builder).await;
        let found =
            std::fs::metadata(node.path(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~projected/tokens/plain")));
        let found = found.unwrap();
        let (mode, user, group) = {
            use std::os::unix::fs::MetadataExt;
            (found.mode() & 0o777, found.uid(), found.gid())
        };
        assert_eq!(format!("{mode:o}:{user}:{group}"), expected, "{name}");
        // Bound to the pod, for who is named, once each.
        let asked: Vec<String> =
            node.api.tokens().into_iter().filter(|asked| asked.starts_with(&format!("{name}/"))).collect();
        let of = |audiences: &str, seconds: i64| format!("{name}/{uid} robot {audiences} {seconds}");
        assert_eq!(asked, [of("[]", 3600), of("[\"vault\"]", 600)], "{name}");
        end(&node, &uid).await;
    }
    node.stop().await;
}
