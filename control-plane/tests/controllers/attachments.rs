//! Volumes that are attached to nodes: the test plays the agents and the driver's attacher.

use super::*;

const DRIVER: &str = "disk.example.com";
const GROUP: &str = "storage.k8s.io";

async fn attachments(lab: &Lab) -> Vec<(String, String)> {
    let all = lab.list(GROUP, "volumeattachments", "").await;
    all.iter().map(|it| (text(it, "name"), it["spec"]["nodeName"].as_str().unwrap().to_owned())).collect()
}

async fn volumes_attached(lab: &Lab, node: &str) -> Value {
    lab.get("", "nodes", "", node).await.unwrap()["status"]["volumesAttached"].clone()
}

async fn disk(lab: &Lab, name: &str, modes: Value) {
    disk_of(lab, DRIVER, name, modes).await;
}

/// A volume with its claim, bound.
async fn disk_of(lab: &Lab, driver: &str, name: &str, modes: Value) {
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("pv-{name}")}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": modes, "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": "default", "name": name},
        "csi": {"driver": driver, "volumeHandle": format!("vol-{name}")}}});
    lab.create("", "persistentvolumes", "", volume).await;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": modes, "storageClassName": "", "volumeName": format!("pv-{name}"),
        "resources": {"requests": {"storage": "1Gi"}}}});
    lab.create("", "persistentvolumeclaims", "default", claim).await;
    lab.until("the claim to be bound", async || {
        lab.get("", "persistentvolumeclaims", "default", name).await.unwrap()["status"]["phase"] == "Bound"
    })
    .await;
}

async fn user(lab: &Lab, name: &str, claim: &str, node: &str) {
    let mut pod = pod(name, "10m");
    pod["spec"]["nodeName"] = json!(node);
    pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
    lab.create("", "pods", "default", pod).await;
}

async fn until_attached(lab: &Lab, node: &str, volumes: Value) {
    lab.until("the node to be told", async || volumes_attached(lab, node).await == volumes).await;
}

async fn remove(lab: &Lab, pod: &str) {
    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    lab.cluster.objects("", "pods").delete("default", pod, &options).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_attached_for_pods_and_leave_when_nobody_uses_them() {
    // A9.17, A9.23
    let lab = Lab::start().await;
    for name in ["n1", "n2", "unmanaged"] {
        lab.node(name, "4").await;
    }
    let managed =
        json!({"metadata": {"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
    for name in ["n1", "n2"] {
        lab.patch("", "nodes", "", name, "", managed.clone()).await;
    }
    let other = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "local.example.com"},
        "spec": {"attachRequired": false}});
    lab.create(GROUP, "csidrivers", "", other).await;
    // Somebody else's, which stays.
    let foreign = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "mine"},
        "spec": {"attacher": "x", "nodeName": "n1", "source": {"persistentVolumeName": "pv-disk"}}});
    lab.create(GROUP, "volumeattachments", "", foreign).await;

    disk(&lab, "disk", json!(["ReadWriteOnce"])).await;
    user(&lab, "a", "disk", "n1").await;
    user(&lab, "b", "disk", "n1").await;
    lab.until("the attachment", async || attachments(&lab).await.len() == 2).await;
    let name = attachments(&lab).await.into_iter().find(|(name, _)| name != "mine").unwrap().0;
    // sha256 of vol-disk, disk.example.com and n1, as agents compute it.
    assert_eq!(name, format!("csi-{}", sha256("vol-diskdisk.example.comn1")));
    let made = lab.get(GROUP, "volumeattachments", "", &name).await.unwrap();
    assert_eq!(
        made["spec"],
        json!({"attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": "pv-disk"}})
    );
    let failed = json!({"status": {"attached": false, "attachError": {"time": jiff_now(), "message": "no such disk"}}});
    lab.patch(GROUP, "volumeattachments", "", &name, "status", failed).await;
    lab.until("the failure to be told", async || {
        lab.events("FailedAttachVolume").await
            == ["AttachVolume.Attach failed for volume \"pv-disk\" : no such disk"; 2]
    })
    .await;
    assert_eq!(volumes_attached(&lab, "n1").await, json!(null));
    // The attacher's finalizer keeps the object until the volume is detached.
    let finalizer = json!({"metadata": {"finalizers": ["external-attacher/disk-example-com"]}});
    lab.patch(GROUP, "volumeattachments", "", &name, "", finalizer).await;
    let attached = json!({"status": {"attached": true, "attachError": null}});
    lab.patch(GROUP, "volumeattachments", "", &name, "status", attached.clone()).await;
    let unique = "kubernetes.io/csi/disk.example.com^vol-disk";
    until_attached(&lab, "n1", json!([{"name": unique, "devicePath": ""}])).await;
    lab.until("both pods to be told", async || {
        lab.events("SuccessfulAttachVolume").await == ["AttachVolume.Attach succeeded for volume \"pv-disk\" "; 2]
    })
    .await;
    let in_use = json!({"status": {"volumesInUse": [unique]}});
    lab.patch("", "nodes", "", "n1", "status", in_use).await;

    // It may be on one node only.
    user(&lab, "c", "disk", "n2").await;
    lab.until("the other pod to be told", async || {
        lab.events("FailedAttachVolume")
            .await
            .contains(&"Multi-Attach error for volume \"pv-disk\" Volume is already used by pod(s) a, b".to_owned())
    })
    .await;
    // The last pod goes, then the node lets go of the volume, then the driver.
    remove(&lab, "a").await;
    remove(&lab, "b").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let kept = lab.get(GROUP, "volumeattachments", "", &name).await.unwrap();
    assert!(kept["metadata"]["deletionTimestamp"].is_null(), "it is still mounted");
    lab.patch("", "nodes", "", "n1", "status", json!({"status": {"volumesInUse": []}})).await;
    until_attached(&lab, "n1", json!([])).await;
    lab.until("the detaching", async || {
        let kept = lab.get(GROUP, "volumeattachments", "", &name).await.unwrap();
        kept["metadata"]["deletionTimestamp"].is_string()
    })
    .await;
    assert_eq!(attachments(&lab).await.len(), 2, "nothing for n2 yet");
    lab.patch(GROUP, "volumeattachments", "", &name, "", json!({"metadata": {"finalizers": null}})).await;
    lab.until("the attachment to the other node", async || {
        attachments(&lab).await.iter().any(|(_, node)| node == "n2")
    })
    .await;

    // A volume of many nodes is attached to all, and one that a node sees by itself to none.
    disk(&lab, "shared", json!(["ReadWriteMany"])).await;
    disk_of(&lab, "local.example.com", "local", json!(["ReadWriteOnce"])).await;
    user(&lab, "local", "local", "n1").await;
    user(&lab, "d", "shared", "n1").await;
    user(&lab, "e", "shared", "n2").await;
    user(&lab, "f", "shared", "unmanaged").await;
    lab.until("both attachments", async || attachments(&lab).await.len() == 4).await;
    assert!(attachments(&lab).await.iter().any(|(name, _)| name == "mine"));

    // A13.12: of a node that is out of service they are taken though it says that it uses them.
    let shared = "kubernetes.io/csi/disk.example.com^vol-shared";
    let of_n1 = format!("csi-{}", sha256("vol-shareddisk.example.comn1"));
    lab.patch(GROUP, "volumeattachments", "", &of_n1, "status", attached).await;
    until_attached(&lab, "n1", json!([{"name": shared, "devicePath": ""}])).await;
    lab.patch("", "nodes", "", "n1", "status", json!({"status": {"volumesInUse": [shared]}})).await;
    remove(&lab, "d").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(attachments(&lab).await.len(), 4);
    let taint = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}});
    lab.patch("", "nodes", "", "n1", "", taint).await;
    lab.until("the detaching", async || !attachments(&lab).await.iter().any(|(name, _)| *name == of_n1)).await;
}

fn sha256(text: &str) -> String {
    let script = format!("printf %s '{text}' | sha256sum");
    let done = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(done.stdout).unwrap().split(' ').next().unwrap().to_owned()
}
