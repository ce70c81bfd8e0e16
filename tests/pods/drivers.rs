//! Volumes that a CSI driver brings: mounted, as devices, grown.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};

use crate::csi::{Driver, NAME};
use crate::node::{Node, condition, phase, pod};
use crate::volumes::{SLEEP, end, exec, maps, of_claim, put, run, until, until_event, volume, with_group};

#[tokio::test]
async fn a_csi_driver_is_registered_and_called() {
    // A9.1, A9.2, A9.3, A9.18, A9.26, A15.6
    let mut node = Node::start().await;
    let root = node.path("kubelet");
    let driver = Driver::new(&root);
    let serving = driver.serve(&root);
    until("the registration", || driver.calls().contains(&"registered".to_owned())).await;
    let registered = node.api.storage(|all| all.registered.get(NAME).cloned()).unwrap();
    assert_eq!((registered.node_id.as_str(), registered.attach_limit), ("disk-node-1", 8));
    assert_eq!(registered.topology["topology.example.com/rack"], "r1");

    let described: k8s_openapi::api::storage::v1::CSIDriver = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "spec": {
            "podInfoOnMount": true, "fsGroupPolicy": "File", "volumeLifecycleModes": ["Persistent", "Ephemeral"],
            "tokenRequests": [{"audience": "vault", "expirationSeconds": 600}],
        },
    }))
    .unwrap();
    node.api.storage(|all| all.drivers.insert(NAME.into(), described));
    node.api.put_secret("key", &[("password", "sesame")]);
    put(
        &node,
        "disk",
        json!({"csi": {
            "driver": NAME, "volumeHandle": "vol-1", "fsType": "ext4", "volumeAttributes": {"tier": "gold"},
            "nodePublishSecretRef": {"name": "key", "namespace": "default"},
        }}),
    );
    let a = node.api.create(with_group(pod("a").container("main", SLEEP), 4242).volume(of_claim("disk"), "/disk").0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!driver.calls().iter().any(|call| call.starts_with("stage")), "it is not attached yet");
    // What upstream's controller names the attachment.
    let name = attachment_of("vol-1", "node-1");
    node.api.storage(|all| {
        let attached = serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"attacher": NAME, "nodeName": "node-1", "source": {}},
            "status": {"attached": true, "attachmentMetadata": {"device": "/dev/vdx"}},
        }));
        all.attachments.insert(name.clone(), attached.unwrap());
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!driver.calls().iter().any(|call| call.starts_with("stage")), "the Node does not say so yet");
    assert!(!node.api.events().iter().any(|event| event.contains("FailedMount")), "waiting is no failure");
    driver.fail_next("stage");
    node.api.storage(|all| all.attached.insert(format!("kubernetes.io/csi/{NAME}^vol-1")));
    node.api.until(&a, "ready", |p| condition(p, "Ready")).await;
    until_event(
        &node,
        "FailedMount: MountVolume.MountDevice failed for volume \"pv-disk\" : rpc error: code = Internal desc = the disk is on fire",
    )
    .await;
    assert_eq!(exec(&node, &a, "cat /disk/data; stat -c %g:%a /disk/data").await, "on disk4242:664\n");
    let context = driver.contexts().pop().unwrap();
    let of_pod = |key: &str| context.get(&format!("csi.storage.k8s.io/{key}")).cloned().unwrap_or_default();
    assert_eq!(
        (of_pod("pod.name"), of_pod("ephemeral"), context["tier"].as_str()),
        ("a".into(), "false".into(), "gold")
    );
    assert_eq!(
        of_pod("serviceAccount.tokens"),
        r#"{"vault":{"expirationTimestamp":"2099-01-01T00:00:00Z","token":"a.b.c"}}"#
    );
    assert_eq!(driver.secrets().pop().unwrap()["password"], "sesame");
    let data = node.path(&format!("kubelet/pods/{a}/volumes/kubernetes.io~csi/pv-disk/vol_data.json"));
    let data: Value = serde_json::from_str(&fs::read_to_string(data).unwrap()).unwrap();
    assert_eq!((&data["volumeHandle"], &data["attachmentID"]), (&json!("vol-1"), &json!(name)));

    let hash = sha256("vol-1");
    assert!(root.join(format!("plugins/kubernetes.io/csi/{NAME}/{hash}/globalmount/data")).exists());
    assert!(root.join(format!("pods/{a}/volumes/kubernetes.io~csi/pv-disk/mount/data")).exists());

    // A second pod shares what is staged; an agent that starts anew knows both; the last one out unstages.
    let b = run(&node, pod("b").container("main", SLEEP).volume(of_claim("disk"), "/disk")).await;
    node.stop_agent().await;
    node.start_agent();
    until("the second registration", || driver.calls().iter().filter(|call| *call == "registered").count() == 2).await;
    driver.fail_next("unpublish");
    end(&node, &a).await;
    assert!(driver.calls().iter().all(|call| !call.starts_with("unstage")));
    assert_eq!(exec(&node, &b, "cat /disk/data").await, "on disk");
    end(&node, &b).await;
    let calls: Vec<String> = driver.calls().into_iter().filter(|call| call.contains("stage")).collect();
    assert_eq!(calls, ["stage vol-1", "stage vol-1", "unstage vol-1"], "the first failed");
    assert!(fs::read_dir(root.join("plugins/kubernetes.io/csi").join(NAME)).unwrap().next().is_none());

    // A volume of the pod alone; its tokens are secrets where the driver says so.
    node.api.storage(|all| {
        all.drivers.get_mut(NAME).unwrap().spec.service_account_token_in_secrets = Some(true);
    });
    let inline = volume("scratch", json!({"csi": {"driver": NAME, "volumeAttributes": {"size": "1"}}}));
    let c = run(&node, pod("c").container("main", SLEEP).volume(inline, "/scratch")).await;
    assert_eq!(driver.contexts().pop().unwrap()["csi.storage.k8s.io/ephemeral"], "true");
    assert!(driver.secrets().pop().unwrap().contains_key("csi.storage.k8s.io/serviceAccount.tokens"));
    assert!(!driver.contexts().pop().unwrap().contains_key("csi.storage.k8s.io/serviceAccount.tokens"));
    end(&node, &c).await;

    // A driver that is gone is forgotten, and whoever needs it is told.
    drop(serving);
    until("its end", || node.api.storage(|all| all.registered.is_empty())).await;
    let inline = volume("scratch", json!({"csi": {"driver": NAME}}));
    let d = node.api.create(pod("d").container("main", SLEEP).volume(inline, "/scratch").0);
    until_event(
        &node,
        "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name disk.example.com not found in the list of registered CSI drivers",
    )
    .await;
    node.api.until(&d, "pending", |p| phase(p) == "Pending").await;
    end(&node, &d).await;
    node.stop().await;
}

#[tokio::test]
async fn drivers_are_asked_again_and_tell_what_volumes_take() {
    // A9.18
    let mut node = Node::start().await;
    node.stop_agent().await;
    node.sync_frequency = Duration::from_secs(1);
    node.start_agent();
    let root = node.path("kubelet");
    let driver = Driver::new(&root);
    let _serving = driver.serve(&root);
    until("the registration", || driver.calls().contains(&"registered".to_owned())).await;
    let described = json!({"metadata": {"name": NAME}, "spec": {
        "requiresRepublish": true, "volumeLifecycleModes": ["Ephemeral"], "tokenRequests": [{"audience": "vault"}],
    }});
    node.api.storage(|all| all.drivers.insert(NAME.into(), serde_json::from_value(described).unwrap()));
    let inline = volume("scratch", json!({"csi": {"driver": NAME, "volumeAttributes": {"size": "1"}}}));
    let uid = run(&node, pod("again").container("main", SLEEP).volume(inline, "/scratch")).await;
    // With a new token each time, and the pod does not notice.
    let published = || driver.calls().iter().filter(|call| call.starts_with("publish")).count();
    until("the same volume again", || published() >= 3).await;
    assert!(driver.contexts().iter().all(|context| context.contains_key("csi.storage.k8s.io/serviceAccount.tokens")));
    let pod = node.api.pod(&uid).unwrap();
    assert!(condition(&pod, "Ready") && crate::node::status(&pod, "main").restart_count == 0);
    let told = node.told_by_drivers(&pod).await;
    let fill = told["scratch"];
    assert_eq!((fill.capacity_bytes, fill.available_bytes, fill.used_bytes), (1000, 600, 400));
    assert_eq!((fill.inodes, fill.inodes_free, fill.inodes_used), (10, 6, 4));
    end(&node, &uid).await;
    node.stop().await;
}

/// Tells that a volume is attached.
fn attach(node: &Node, handle: &str) {
    let name = attachment_of(handle, "node-1");
    let attachment = json!({
        "metadata": {"name": name}, "spec": {"attacher": NAME, "nodeName": "node-1", "source": {}},
        "status": {"attached": true, "attachmentMetadata": {"device": "/dev/vdx"}},
    });
    node.api.storage(|all| {
        all.attachments.insert(name, serde_json::from_value(attachment).unwrap());
        all.attached.insert(format!("kubernetes.io/csi/{NAME}^{handle}"));
    });
}

#[tokio::test]
async fn devices_of_a_driver_are_mapped_and_volumes_grow() {
    // A1.8, A6.3, A9.1, A9.2, A9.3, A9.17, A9.18, A9.23, A10.11, A21.1, A21.2
    let mut node = Node::start().await;
    let root = node.path("kubelet");
    let driver = Driver::new(&root);
    let _serving = driver.serve(&root);
    until("the registration", || driver.calls().contains(&"registered".to_owned())).await;
    put(&node, "raw", json!({"csi": {"driver": NAME, "volumeHandle": "raw-1"}, "volumeMode": "Block"}));
    attach(&node, "raw-1");
    driver.fail_next("publish");
    let a = run(&node, maps("a", "raw")).await;
    until_event(
        &node,
        "a  FailedMapVolume: MapVolume.MapPodDevice failed for volume \"pv-raw\" : rpc error: code = Internal desc = the disk is on fire",
    )
    .await;
    let all = root.join("plugins/kubernetes.io/csi/volumeDevices");
    let links = root.join(format!("pods/{a}/volumeDevices/kubernetes.io~csi"));
    let succeeded = "a  SuccessfulMountVolume: MapVolume.MapPodDevice succeeded for volume \"pv-raw\"";
    until_event(&node, &format!("{succeeded} globalMapPath \"{}\"", all.join("pv-raw/dev").display())).await;
    until_event(&node, &format!("{succeeded} volumeMapPath \"{}\"", links.display())).await;
    let told = "stat -c '%F %t %T' /dev/data";
    assert_eq!(exec(&node, &a, told).await.trim(), "block special file 7 fa");
    assert_eq!(fs::read_link(links.join("pv-raw")).unwrap(), all.join(format!("publish/pv-raw/{a}")));
    let data: Value =
        serde_json::from_str(&fs::read_to_string(all.join("pv-raw/data/vol_data.json")).unwrap()).unwrap();
    assert_eq!(
        (&data["volumeHandle"], &data["attachmentID"]),
        (&json!("raw-1"), &json!(attachment_of("raw-1", "node-1")))
    );

    // The next agent knows it; another pod shares what is staged; the last one out unstages.
    node.stop_agent().await;
    node.start_agent();
    until("the second registration", || driver.calls().iter().filter(|call| *call == "registered").count() == 2).await;
    let b = run(&node, maps("b", "raw")).await;
    end(&node, &a).await;
    assert_eq!(exec(&node, &b, told).await.trim(), "block special file 7 fa");
    assert!(driver.calls().iter().all(|call| !call.starts_with("unstage")));
    // What nobody wants any more when the next agent comes is taken away by that one.
    node.stop_agent().await;
    node.api.remove(&b);
    node.start_agent();
    node.until_nothing_is_left(&b).await;
    let calls: Vec<String> = driver.calls().into_iter().filter(|call| call.ends_with("raw-1")).collect();
    let expected = ["stage", "publish", "publish", "publish", "unpublish", "unpublish", "unstage"];
    assert_eq!(calls, expected.map(|call| format!("{call} raw-1")), "the first publish failed");
    assert!(
        !all.join("pv-raw").exists() && !all.join("staging/pv-raw").exists() && !all.join("publish/pv-raw").exists()
    );

    // A volume that the cluster has made larger grows before its pod starts, or while it runs.
    put(&node, "large", json!({"csi": {"driver": NAME, "volumeHandle": "vol-2"}}));
    attach(&node, "vol-2");
    let api = node.api.clone();
    let grow = |size: &str| {
        let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.to_owned());
        api.storage(|all| {
            let spec = all.volumes.get_mut("pv-large").unwrap().spec.as_mut().unwrap();
            spec.capacity = Some([("storage".to_owned(), size)].into());
        });
    };
    grow("2Gi");
    driver.fail_next("expand");
    let c = run(&node, pod("c").container("main", SLEEP).volume(of_claim("large"), "/disk")).await;
    until_event(
        &node,
        "c  FailedMount: MountVolume.Setup failed while expanding volume for volume \"pv-large\" : rpc error",
    )
    .await;
    for who in ["c ", "claim large "] {
        let text = "FileSystemResizeSuccessful: MountVolume.NodeExpandVolume succeeded for volume \"pv-large\" node-1";
        until_event(&node, &format!("{who} {text}")).await;
    }
    let size =
        |claim: &PersistentVolumeClaim| claim.status.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0.clone();
    assert_eq!(node.api.storage(|all| size(&all.claims["large"])), "2Gi");
    grow("3Gi");
    driver.fail_next("expand");
    node.stop_agent().await;
    node.start_agent();
    until_event(
        &node,
        "c  VolumeResizeFailed: NodeExpandVolume.NodeExpandVolume failed for volume \"pv-large\" : rpc error",
    )
    .await;
    end(&node, &c).await;
    // Who only reads cannot let it grow.
    grow("4Gi");
    let reads = volume("data", json!({"persistentVolumeClaim": {"claimName": "large", "readOnly": true}}));
    let d = run(&node, pod("d").container("main", SLEEP).volume(reads, "/disk")).await;
    until_event(
        &node,
        "d  FileSystemResizeFailed: MountVolume.NodeExpandVolume failed for volume \"pv-large\" requested read-only file system",
    )
    .await;
    end(&node, &d).await;

    // One that is for one pod alone is not shown to a second.
    put(&node, "alone", json!({"csi": {"driver": NAME, "volumeHandle": "vol-4"}, "accessModes": ["ReadWriteOncePod"]}));
    attach(&node, "vol-4");
    let first = run(&node, pod("first").container("main", SLEEP).volume(of_claim("alone"), "/disk")).await;
    let second = node.api.create(pod("second").container("main", SLEEP).volume(of_claim("alone"), "/disk").0);
    until_event(
        &node,
        "second  FailedMount: MountVolume.SetUp failed for volume \"pv-alone\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod",
    )
    .await;
    end(&node, &first).await;
    node.api.until(&second, "ready", |p| condition(p, "Ready")).await;
    end(&node, &second).await;

    // A driver that never came keeps no pod from going.
    put(&node, "nobody", json!({"csi": {"driver": "nobody.example.com", "volumeHandle": "vol-9"}}));
    let nobody: k8s_openapi::api::storage::v1::CSIDriver =
        serde_json::from_value(json!({"metadata": {"name": "nobody.example.com"}, "spec": {"attachRequired": false}}))
            .unwrap();
    node.api.storage(|all| all.drivers.insert("nobody.example.com".into(), nobody));
    let f = node.api.create(pod("f").container("main", SLEEP).volume(of_claim("nobody"), "/disk").0);
    until_event(
        &node,
        "f  FailedMount: MountVolume.MountDevice failed for volume \"pv-nobody\" : kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name nobody.example.com not found in the list of registered CSI drivers",
    )
    .await;
    end(&node, &f).await;

    // A9.2: whoever waits for a volume in vain is looked at again, and no event tells of that.
    put(&node, "late", json!({"csi": {"driver": NAME, "volumeHandle": "vol-6"}}));
    let late = node.api.create(pod("late").container("main", SLEEP).volume(of_claim("late"), "/disk").0);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!node.api.events().iter().any(|event| event.starts_with("late  ")), "{:#?}", node.api.events());
    attach(&node, "vol-6");
    node.api.until(&late, "ready", |p| condition(p, "Ready")).await;
    end(&node, &late).await;

    // A6.3: where the driver can attach no more the pod cannot stay, and the cluster is told how many those are.
    let described: k8s_openapi::api::storage::v1::CSIDriver =
        serde_json::from_value(json!({"metadata": {"name": NAME}, "spec": {"nodeAllocatableUpdatePeriodSeconds": 60}}))
            .unwrap();
    put(&node, "full", json!({"csi": {"driver": NAME, "volumeHandle": "vol-5"}}));
    node.api.storage(|all| {
        let name = attachment_of("vol-5", "node-1");
        let attachment = json!({
            "metadata": {"name": name}, "spec": {"attacher": NAME, "nodeName": "node-1", "source": {}},
            "status": {"attached": false, "attachError": {"errorCode": 8, "message": "no more"}},
        });
        all.attachments.insert(name, serde_json::from_value(attachment).unwrap());
        all.drivers.insert(NAME.into(), described);
        all.registered.clear();
    });
    let full = node.api.create(pod("full").container("main", SLEEP).volume(of_claim("full"), "/disk").0);
    let refused = node.api.until(&full, "rejected", |p| phase(p) == "Failed").await;
    let text = "Node has reached its volume attachment limit, rejecting pod. unmounted volumes=[data], unattached volumes=[data], \
                failed to process volumes=[]: context deadline exceeded";
    let status = refused.status.clone().unwrap();
    assert_eq!(status.reason.as_deref(), Some("VolumeAttachmentLimitExceeded"));
    assert_eq!(status.message, Some(format!("Pod was rejected: {text}")));
    assert!(node.api.is_warning(&format!("full  VolumeAttachmentLimitExceeded: {text}")));
    assert_eq!(node.api.storage(|all| all.registered[NAME].attach_limit), 8, "it was asked again");
    end(&node, &full).await;

    // A pod that waits for its volume goes at once.
    put(&node, "detached", json!({"csi": {"driver": NAME, "volumeHandle": "vol-3"}}));
    let e = node.api.create(pod("e").container("main", SLEEP).volume(of_claim("detached"), "/disk").0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    tokio::time::timeout(Duration::from_secs(5), end(&node, &e)).await.expect("nobody waits for the volume any more");
    node.stop().await;
}

fn attachment_of(handle: &str, node: &str) -> String {
    format!("csi-{}", sha256(&format!("{handle}{NAME}{node}")))
}

fn sha256(text: &str) -> String {
    use std::process::{Command, Stdio};
    let script = format!("printf %s '{text}' | sha256sum");
    let done = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(done.stdout).unwrap().split(' ').next().unwrap().to_owned()
}
