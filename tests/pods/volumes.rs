//! Volumes of real containers: content that changes, directories, claims, CSI drivers, sub-paths.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, PodSecurityContext, Volume};
use serde_json::{Value, json};
use stoker_model::handle::ObjectName;
use stoker_model::pod::PodUid;

use crate::csi::{Driver, NAME};
use crate::node::{Builder, Node, condition, phase, pod, state, status};

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn volume(name: &str, source: Value) -> Volume {
    let mut whole = json!({"name": name});
    json_merge(&mut whole, source);
    serde_json::from_value(whole).unwrap()
}

fn json_merge(into: &mut Value, from: Value) {
    into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
}

/// Waits for something that a pod's status does not tell.
async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen");
}

async fn until_event(node: &Node, wanted: &str) {
    for _ in 0..200 {
        if node.api.events().iter().any(|event| event.contains(wanted)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no event {wanted:?}: {:#?}", node.api.events());
}

/// What a command in the pod's container `main` prints.
async fn exec(node: &Node, uid: &PodUid, script: &str) -> String {
    let pod = node.api.pod(uid).unwrap();
    let id = status(&pod, "main").container_id.unwrap().replace("containerd://", "");
    let command = ["/bin/busybox", "sh", "-c", script].map(String::from).to_vec();
    let done = node.lab.runtime.exec_sync(&id, command, Duration::from_secs(10)).await.unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
}

async fn run(node: &Node, builder: Builder) -> PodUid {
    let uid = node.api.create(builder.0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    uid
}

async fn end(node: &Node, uid: &PodUid) {
    node.api.delete(uid, 1);
    node.api.until_gone(uid).await;
    node.until_nothing_is_left(uid).await;
}

fn with_group(builder: Builder, group: i64) -> Builder {
    builder.spec(|spec| {
        spec.security_context = Some(PodSecurityContext { fs_group: Some(group), ..Default::default() });
    })
}

#[tokio::test]
async fn content_follows_its_objects() {
    // A9.1, A9.2, A9.6, A9.7, A9.8, A9.9, A9.10, A9.16
    let node = Node::start().await;
    node.api.put_config_map("settings", &[("colour", "green"), ("size", "1")]);
    node.api.put_secret("password", &[("word", "sesame")]);
    let projected = json!({"projected": {"defaultMode": 0o440, "sources": [
        {"configMap": {"name": "settings", "items": [{"key": "colour", "path": "deep/colour", "mode": 0o400}]}},
        {"secret": {"name": "password"}},
        {"configMap": {"name": "later", "optional": true}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
    ]}});
    let web = with_group(pod("web").container("main", SLEEP), 4242)
        .volume(volume("settings", json!({"configMap": {"name": "settings"}})), "/settings")
        .volume(volume("password", json!({"secret": {"secretName": "password", "defaultMode": 0o400}})), "/password")
        .volume(volume("all", projected), "/all")
        .with(|c| {
            let mut fixed = c.volume_mounts.as_ref().unwrap()[0].clone();
            fixed.mount_path = "/fixed".into();
            fixed.sub_path = Some("colour".into());
            c.volume_mounts.as_mut().unwrap().push(fixed);
        });
    let uid = run(&node, web).await;
    assert_eq!(
        exec(&node, &uid, "cat /settings/colour /password/word /all/deep/colour /fixed").await,
        "greensesamegreengreen"
    );
    let modes =
        exec(&node, &uid, "stat -Lc '%a %g' /settings/colour /password/word /all/deep/colour /all/word /all/token")
            .await;
    assert_eq!(modes, "644 4242\n440 4242\n440 4242\n440 4242\n440 4242\n");
    assert!(exec(&node, &uid, "echo x > /settings/colour").await.contains("Read-only"));
    assert_eq!(exec(&node, &uid, "grep -c ' /password tmpfs' /proc/mounts").await, "1\n", "secrets lie in memory");
    let maps = ["settings", "later"].map(|name| ObjectName::ConfigMap("default".into(), name.into()));
    let secret = ObjectName::Secret("default".into(), "password".into());
    assert_eq!(node.api.followed(), maps.into_iter().chain([secret]).collect());

    // Changed, removed and new objects reach the pod long before the next resync; what was mounted by itself stays.
    node.api.put_config_map("settings", &[("colour", "red")]);
    node.api.put_config_map("later", &[("late", "yes")]);
    node.api.change_pod(&uid, |pod| {
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    });
    let dir = node.path(&format!("kubelet/pods/{uid}/volumes"));
    let shows = |path: &str, text: &str| fs::read_to_string(dir.join(path)).is_ok_and(|found| found == text);
    until("the change", || {
        shows("kubernetes.io~configmap/settings/colour", "red")
            && !dir.join("kubernetes.io~configmap/settings/size").exists()
            && shows("kubernetes.io~projected/all/deep/colour", "red")
            && shows("kubernetes.io~projected/all/late", "yes")
            && shows("kubernetes.io~projected/all/labels", "app=\"web\"")
    })
    .await;
    assert_eq!(exec(&node, &uid, "cat /settings/colour /all/deep/colour /fixed").await, "redredgreen");
    end(&node, &uid).await;
    assert!(node.api.followed().is_empty());

    // A pod that waits for an object starts as soon as it is there.
    let waiting =
        pod("waiting").container("main", SLEEP).volume(volume("v", json!({"configMap": {"name": "missing"}})), "/v");
    let uid = node.api.create(waiting.0);
    until_event(&node, "FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"missing\" not found")
        .await;
    node.api.put_config_map("missing", &[("a", "b")]);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    end(&node, &uid).await;
    node.stop().await;
}

#[tokio::test]
async fn directories_are_as_asked_and_go_with_the_pod() {
    // A9.1, A9.4, A9.5, A9.13, A9.14, A9.15, A9.16, A9.20, A9.21, A9.24, A9.25
    let node = Node::start().await;
    let host = node.path("host");
    fs::create_dir_all(host.join("made")).unwrap();
    stoker::volume::Volumes::share_root(&node.path("kubelet")).unwrap();
    let memory = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
    let script = format!("mkdir -p /disk/in; {SLEEP}");
    let web = with_group(pod("web").container("main", &script), 4242)
        .volume(volume("disk", json!({"emptyDir": {}})), "/disk")
        .volume(volume("memory", memory), "/memory")
        .volume(volume("host", json!({"hostPath": {"path": host.join("new"), "type": "DirectoryOrCreate"}})), "/host")
        .env("NAME", "web")
        .with(|c| {
            let mounts = c.volume_mounts.as_mut().unwrap();
            let mut part = mounts[0].clone();
            (part.mount_path, part.sub_path_expr) = ("/part".into(), Some("parts/$(NAME)".into()));
            let mut read_only = mounts[0].clone();
            (read_only.mount_path, read_only.read_only) = ("/ro".into(), Some(true));
            read_only.recursive_read_only = Some("IfPossible".into());
            let mut propagated = mounts[0].clone();
            (propagated.mount_path, propagated.mount_propagation) = ("/slave".into(), Some("HostToContainer".into()));
            mounts.extend([part, read_only, propagated]);
        });
    let uid = run(&node, web).await;
    assert_eq!(exec(&node, &uid, "stat -c %a:%g /disk /memory /host").await, "2777:4242\n3777:4242\n755:0\n");
    assert!(exec(&node, &uid, "grep ' /memory tmpfs' /proc/mounts").await.contains("size=1024k"));
    assert!(exec(&node, &uid, "dd if=/dev/zero of=/memory/f bs=1M count=2 2>&1").await.contains("No space left"));
    assert_eq!(
        exec(&node, &uid, "echo x > /part/f; stat -c %a:%g /disk/parts/web; cat /disk/parts/web/f").await,
        "2777:4242\nx\n"
    );
    assert!(exec(&node, &uid, "touch /ro/f 2>&1").await.contains("Read-only"));
    let shown = status(&node.api.pod(&uid).unwrap(), "main").volume_mounts.unwrap();
    let read_only: Vec<Option<String>> = shown.iter().map(|m| m.recursive_read_only.clone()).collect();
    assert_eq!(read_only[4].as_deref(), Some("Disabled"), "this runtime cannot: {read_only:?}");
    assert!(read_only[..4].iter().all(Option::is_none));

    // What the node mounts later is seen where that was asked for.
    let later = node.path(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/disk/in"));
    assert!(std::process::Command::new("mount").args(["-t", "tmpfs", "later"]).arg(&later).status().unwrap().success());
    fs::write(later.join("late"), "").unwrap();
    assert_eq!(exec(&node, &uid, "ls /slave/in; ls /disk/in").await, "late\n");

    // And what a privileged container mounts is seen on the node, where that was asked for.
    let both = pod("both").container("main", SLEEP).volume(volume("v", json!({"emptyDir": {}})), "/v").with(|c| {
        c.security_context = Some(serde_json::from_value(json!({"privileged": true})).unwrap());
        c.volume_mounts.as_mut().unwrap()[0].mount_propagation = Some("Bidirectional".into());
    });
    let both = run(&node, both).await;
    exec(&node, &both, "mkdir /v/in && mount -t tmpfs in /v/in && touch /v/in/seen").await;
    let inside = node.path(&format!("kubelet/pods/{both}/volumes/kubernetes.io~empty-dir/v/in"));
    assert!(inside.join("seen").exists());
    assert_eq!(exec(&node, &both, "umount /v/in").await, "");
    assert!(!inside.join("seen").exists());
    end(&node, &both).await;

    // What lies in memory goes with the containers, though the pod itself stays.
    let memory = volume("v", json!({"emptyDir": {"medium": "Memory"}}));
    let done = pod("done").restart("Never").container("main", "echo x > /v/x").volume(memory, "/v");
    let done = node.api.create(done.0);
    node.api.until(&done, "done", |p| phase(p) == "Succeeded").await;
    let mounted = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.contains(done.as_str()) && line.contains("empty-dir"))
    };
    until("the end of what lay in memory", || !mounted()).await;
    assert_eq!(phase(&node.api.pod(&done).unwrap()), "Succeeded");
    end(&node, &done).await;

    // What is in an emptyDir survives a restart of its container.
    exec(&node, &uid, "echo kept > /disk/kept; kill -TERM 1").await;
    node.api.until(&uid, "restarted", |p| condition(p, "Ready") && status(p, "main").restart_count == 1).await;
    assert_eq!(exec(&node, &uid, "cat /disk/kept /part/f").await, "kept\nx\n");

    let dirs = node.path(&format!("kubelet/pods/{uid}"));
    assert!(dirs.join("volume-subpaths/disk/main/3").is_dir());
    end(&node, &uid).await;
    assert!(host.join("new").is_dir());

    // Without a group of its own everybody may write, and what is made is its maker's.
    for (medium, user) in [("", 0), ("", 1000), ("Memory", 0), ("Memory", 1000)] {
        let name = format!("matrix-{}{user}", medium.to_lowercase());
        let matrix = pod(&name)
            .container("main", SLEEP)
            .volume(volume("v", json!({"emptyDir": {"medium": medium}})), "/v")
            .spec(|spec| {
                spec.security_context = Some(PodSecurityContext { run_as_user: Some(user), ..Default::default() });
            });
        let uid = run(&node, matrix).await;
        let script = "for m in 644 666 777; do touch /v/$m; chmod $m /v/$m; stat -c %a:%u /v/$m; done; stat -c %a:%u /v; \
                      umask; : > /v/new; stat -c %a /v/new";
        let told = exec(&node, &uid, script).await;
        let directory = if medium == "Memory" { "1777:0" } else { "777:0" };
        assert_eq!(told, format!("644:{user}\n666:{user}\n777:{user}\n{directory}\n0022\n644\n"), "{name}");
        end(&node, &uid).await;
    }

    // Whatever is wrong is told, and no other pod notices.
    let refused = |name: &str, source: Value| pod(name).container("main", SLEEP).volume(volume("v", source), "/v");
    let file = refused("file", json!({"hostPath": {"path": host.join("made"), "type": "File"}}));
    let git = refused("git", json!({"gitRepo": {"repository": "x"}}));
    let medium = refused("medium", json!({"emptyDir": {"medium": "Tape"}}));
    let huge = refused("huge", json!({"emptyDir": {"medium": "HugePages"}}));
    let nfs = refused("nfs", json!({"nfs": {"server": "192.0.2.1", "path": "/x"}}));
    let uids: Vec<PodUid> = [file, git, medium, huge].map(|b| node.api.create(b.0)).into();
    let failed = "FailedMount: MountVolume.SetUp failed for volume \"v\" : ";
    for text in [
        format!("hostPath type check failed: {} is not a file", host.join("made").display()),
        "git-repo volume plugin has been disabled; if necessary, it may be re-enabled".to_owned(),
        "unknown storage medium \"Tape\"".to_owned(),
        "medium HugePages: hugePages storage requested, but there is no resource request for huge pages".to_owned(),
    ] {
        until_event(&node, &format!("{failed}{text}")).await;
    }
    if !Path::new("/sbin/mount.nfs").exists() {
        let uid = node.api.create(nfs.0);
        until_event(
            &node,
            &format!("{failed}mount failed: mount -t nfs 192.0.2.1:/x: bad option; for several filesystems"),
        )
        .await;
        end(&node, &uid).await;
    }
    for uid in uids {
        end(&node, &uid).await;
    }
    bad_sub_paths(&node).await;
    node.stop().await;
}

/// A9.13, A9.14, A9.20, A9.24: containers that are not made, and why.
async fn bad_sub_paths(node: &Node) {
    type Change = fn(&mut k8s_openapi::api::core::v1::VolumeMount);
    let out: Change = |m| m.sub_path = Some("out/passwd".into());
    let up: Change = |m| m.sub_path_expr = Some("$(UP)".into());
    let none: Change = |m| m.sub_path_expr = Some("$(NONE)".into());
    let recursive: Change = |m| {
        m.read_only = Some(true);
        m.recursive_read_only = Some("Enabled".into());
    };
    for (name, change, text) in [
        ("link", out, "failed to prepare subPath for volumeMount \"v\" of container \"main\""),
        ("up", up, "unable to provision SubPath `..`: must not contain '..'"),
        ("none", none, "missing value for NONE"),
        (
            "recursive",
            recursive,
            "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but it is not supported by the runtime",
        ),
    ] {
        let bad = pod(name)
            .init("first", "ln -s /etc /v/out")
            .container("main", SLEEP)
            .volume(volume("v", json!({"emptyDir": {}})), "/v")
            .env("UP", "..")
            .with(|c| change(c.volume_mounts.as_mut().unwrap().last_mut().unwrap()))
            .spec(|spec| {
                let mount = serde_json::from_value(json!({"name": "v", "mountPath": "/v"})).unwrap();
                spec.init_containers.as_mut().unwrap()[0].volume_mounts = Some(vec![mount]);
            });
        let uid = node.api.create(bad.0);
        let refused = |p: &Pod| state(status(p, "main").state.as_ref()) == "waiting CreateContainerConfigError";
        let told = node.api.until(&uid, name, refused).await;
        let message = status(&told, "main").state.unwrap().waiting.unwrap().message;
        assert_eq!(message.as_deref(), Some(text), "{name}");
        end(node, &uid).await;
    }
    // This runtime cannot mount images; one that is not there is told of first.
    node.change_node(|node| node.runtime_version = "containerd://1.6.20".into());
    let of_image = |reference: &str| json!({"image": {"reference": reference, "pullPolicy": "Never"}});
    for (name, reference, reason, text) in [
        (
            "image",
            crate::lab::BUSYBOX,
            "CreateContainerError",
            "containerd://1.6.20 cannot mount images: it takes containerd 2.1",
        ),
        ("absent", "127.0.0.1:1/none:1", "ErrImageNeverPull", "is not present with pull policy of Never"),
    ] {
        let uid = node.api.create(pod(name).container("main", SLEEP).volume(volume("v", of_image(reference)), "/v").0);
        let waits = format!("waiting {reason}");
        let told = node.api.until(&uid, name, |p| state(status(p, "main").state.as_ref()) == waits).await;
        let message = status(&told, "main").state.unwrap().waiting.unwrap().message.unwrap();
        assert!(message.contains(text), "{message}");
        end(node, &uid).await;
    }

    // What was wrong may be made good: the variable comes from an annotation.
    let mut late = pod("late").container("main", SLEEP).volume(volume("v", json!({"emptyDir": {}})), "/v").with(|c| {
        let from = json!([{"name": "PART", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['part']"}}}]);
        c.env.get_or_insert_default().extend(serde_json::from_value::<Vec<_>>(from).unwrap());
        c.volume_mounts.as_mut().unwrap()[0].sub_path_expr = Some("$(PART)".into());
    });
    late.0.metadata.annotations.get_or_insert_default().insert("part".into(), "/absolute".into());
    let late = node.api.create(late.0);
    let refused = |p: &Pod| state(status(p, "main").state.as_ref()) == "waiting CreateContainerConfigError";
    node.api.until(&late, "refused", refused).await;
    node.api.change_pod(&late, |pod| {
        pod.metadata.annotations.get_or_insert_default().insert("part".into(), "good".into());
    });
    node.api.until(&late, "ready", |p| condition(p, "Ready")).await;
    end(node, &late).await;
}

fn persistent(name: &str, spec: Value) -> PersistentVolume {
    let mut whole = json!({
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "claimRef": {"name": name, "namespace": "default", "uid": format!("{name}-uid")},
    });
    json_merge(&mut whole, spec);
    serde_json::from_value(json!({"metadata": {"name": format!("pv-{name}")}, "spec": whole})).unwrap()
}

fn claim(name: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("{name}-uid")},
        "spec": {"volumeName": format!("pv-{name}")},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    }))
    .unwrap()
}

/// A claim that is bound to a volume.
fn put(node: &Node, name: &str, spec: Value) {
    node.api.storage(|all| {
        all.claims.insert(name.to_owned(), claim(name));
        all.volumes.insert(format!("pv-{name}"), persistent(name, spec));
    });
}

fn of_claim(name: &str) -> Volume {
    volume("data", json!({"persistentVolumeClaim": {"claimName": name}}))
}

#[tokio::test]
async fn claims_show_what_they_are_bound_to() {
    // A9.1, A9.3, A9.16, A9.17, A9.19, A9.22, A10.2
    let mut node = Node::start().await;
    let (local, host) = (node.path("local"), node.path("host"));
    for dir in [&local, &host] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(local.join("precious"), "x").unwrap();
    put(&node, "local", json!({"local": {"path": local}}));
    put(&node, "host", json!({"hostPath": {"path": host}}));
    let one = with_group(pod("one").container("main", SLEEP), 4242)
        .volume(of_claim("local"), "/local")
        .volume(volume("other", json!({"persistentVolumeClaim": {"claimName": "host", "readOnly": true}})), "/host");
    node.api.storage(|all| {
        let group = ("pv.beta.kubernetes.io/gid".to_owned(), "7777".to_owned());
        all.volumes.get_mut("pv-host").unwrap().metadata.annotations = Some([group].into());
    });
    let one = run(&node, one).await;
    assert_eq!(exec(&node, &one, "id -G").await, "0 4242 7777\n");
    assert_eq!(exec(&node, &one, "cat /local/precious; touch /local/f; touch /host/f 2>&1").await.lines().count(), 1);
    assert!(local.join("f").exists() && !host.join("f").exists(), "the claim is read-only");
    let found = fs::metadata(local.join("precious")).unwrap();
    assert_eq!((found.gid(), found.permissions().mode() & 0o777), (4242, 0o664));
    assert!(node.path(&format!("kubelet/pods/{one}/volumes/kubernetes.io~local-volume/pv-local/precious")).exists());

    // The next agent takes it over, even when the API server knows nothing of it, and takes nothing away but the mount.
    node.stop_agent().await;
    node.api.storage(|all| all.claims.clear());
    node.start_agent();
    let id = status(&node.api.pod(&one).unwrap(), "main").container_id;
    exec(&node, &one, "kill -TERM 1").await;
    node.api.until(&one, "restarted", |p| condition(p, "Ready") && status(p, "main").container_id != id).await;
    assert_eq!(exec(&node, &one, "cat /local/precious").await, "x");
    end(&node, &one).await;
    assert_eq!(fs::read_to_string(local.join("precious")).unwrap(), "x");

    // A device: the node in the container leads to the same one. Nothing opens it here, since there is none behind the number.
    let device = node.path("device");
    let made = std::process::Command::new("mknod").arg(&device).args(["b", "7", "250"]).status().unwrap();
    assert!(made.success());
    put(&node, "block", json!({"local": {"path": device}, "volumeMode": "Block"}));
    put(&node, "no-block", json!({"local": {"path": local}, "volumeMode": "Block"}));
    put(&node, "no-device", json!({"local": {"path": local}}));
    let block = run(&node, maps("block", "block")).await;
    assert_eq!(exec(&node, &block, "stat -c '%F %t %T' /dev/data").await.trim(), "block special file 7 fa");
    end(&node, &block).await;

    // What is not as it must be is told in upstream's words.
    put(
        &node,
        "elsewhere",
        json!({"local": {"path": local}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["moon"]}]}]}}}),
    );
    put(&node, "unbound", json!({"local": {"path": local}}));
    put(&node, "stolen", json!({"local": {"path": local}}));
    put(&node, "two-ephemeral", json!({"local": {"path": local}}));
    node.api.storage(|all| {
        all.claims.get_mut("unbound").unwrap().status = None;
        all.claims.get_mut("stolen").unwrap().metadata.uid = Some("another".into());
    });
    let mut waiting = Vec::new();
    for name in ["elsewhere", "unbound", "stolen", "absent"] {
        waiting.push(node.api.create(pod(name).container("main", SLEEP).volume(of_claim(name), "/data").0));
    }
    for name in ["no-block", "no-device"] {
        waiting.push(node.api.create(maps(name, name).0));
    }
    let ephemeral = volume("ephemeral", json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
    waiting.push(node.api.create(pod("two").container("main", SLEEP).volume(ephemeral, "/data").0));
    for text in [
        "elsewhere  FailedMount: MountVolume.NodeAffinity check failed for volume \"pv-elsewhere\" : no matching NodeSelectorTerms",
        "no-block  FailedMapVolume: MapVolume.SetUpDevice failed for volume \"pv-no-block\" : path",
        "no-device  FailedMount: Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: volume data has volumeMode Filesystem, but is specified in volumeDevices",
        "unbound  FailedMount: Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: error processing PVC default/unbound: PVC is not bound",
        "error processing PVC default/stolen: found PV object pv-stolen but its pv.Spec.ClaimRef.UID stolen-uid does not point to claim.UID another",
        "error processing PVC default/absent: failed to fetch PVC from API server: persistentvolumeclaims \"absent\" not found",
        "PVC default/two-ephemeral was not created for pod default/two (pod is not owner)",
    ] {
        until_event(&node, text).await;
    }
    for uid in waiting {
        end(&node, &uid).await;
    }
    node.stop().await;
}

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

/// A pod that uses its claim as a device.
fn maps(name: &str, claim: &str) -> Builder {
    let devices = json!([{"name": "data", "devicePath": "/dev/data"}]);
    let pod = pod(name).container("main", SLEEP).volume(of_claim(claim), "/data");
    pod.with(|c| (c.volume_mounts, c.volume_devices) = (None, serde_json::from_value(devices).unwrap()))
}

#[tokio::test]
async fn devices_of_a_driver_are_mapped_and_volumes_grow() {
    // A9.1, A9.3, A9.17, A9.18, A9.23, A10.11
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
    let grow = |size: &str| {
        let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.to_owned());
        node.api.storage(|all| {
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
