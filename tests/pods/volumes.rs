//! Volumes of real containers: content that changes, directories, claims, sub-paths.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, PodSecurityContext, Volume};
use serde_json::{Value, json};
use stoker_model::handle::ObjectName;
use stoker_model::pod::PodUid;

use crate::node::{Builder, Node, condition, phase, pod, state, status};

pub(crate) const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

pub(crate) fn volume(name: &str, source: Value) -> Volume {
    let mut whole = json!({"name": name});
    json_merge(&mut whole, source);
    serde_json::from_value(whole).unwrap()
}

fn json_merge(into: &mut Value, from: Value) {
    into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
}

/// Waits for something that a pod's status does not tell.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen");
}

pub(crate) async fn until_event(node: &Node, wanted: &str) {
    for _ in 0..200 {
        if node.api.events().iter().any(|event| event.contains(wanted)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no event {wanted:?}: {:#?}", node.api.events());
}

/// What a command in the pod's container `main` prints.
pub(crate) async fn exec(node: &Node, uid: &PodUid, script: &str) -> String {
    let pod = node.api.pod(uid).unwrap();
    let id = status(&pod, "main").container_id.unwrap().replace("containerd://", "");
    let command = ["/bin/busybox", "sh", "-c", script].map(String::from).to_vec();
    let done = node.lab.runtime.exec_sync(&id, command, Duration::from_secs(10)).await.unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
}

pub(crate) async fn run(node: &Node, builder: Builder) -> PodUid {
    let uid = node.api.create(builder.0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    uid
}

pub(crate) async fn end(node: &Node, uid: &PodUid) {
    node.api.delete(uid, 1);
    node.api.until_gone(uid).await;
    node.until_nothing_is_left(uid).await;
}

pub(crate) fn with_group(builder: Builder, group: i64) -> Builder {
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
    let once = node.path("once");
    let web = with_group(pod("web").container("main", SLEEP), 4242)
        .volume(volume("settings", json!({"configMap": {"name": "settings"}})), "/settings")
        .volume(volume("password", json!({"secret": {"secretName": "password", "defaultMode": 0o400}})), "/password")
        .volume(volume("all", projected), "/all")
        .volume(volume("once", json!({"hostPath": {"path": once, "type": "DirectoryOrCreate"}})), "/once")
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

    // Changed, removed and new objects reach the pod long before the next resync; what was mounted by itself stays. Volumes that show
    // nothing are not looked at: a server that is gone would hold up the others.
    fs::remove_dir(&once).unwrap();
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
    assert!(!once.exists(), "it was made once");
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
    // A2.14, A2.16, A9.1, A9.4, A9.5, A9.13, A9.14, A9.15, A9.16, A9.20, A9.21, A9.24, A9.25
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
    let of_image = |reference: &str, policy: &str| json!({"image": {"reference": reference, "pullPolicy": policy}});
    for (name, reference, policy, reason, text) in [
        ("unpulled", "127.0.0.1:1/none:1", "Always", "ErrImagePull", "connection refused"),
        ("backing-off", "127.0.0.1:1/none:2", "IfNotPresent", "ImagePullBackOff", "Back-off pulling image"),
        (
            "image",
            crate::lab::BUSYBOX,
            "Never",
            "CreateContainerError",
            "containerd://1.6.20 cannot mount images: it takes containerd 2.1",
        ),
        ("absent", "127.0.0.1:1/none:1", "Never", "ErrImageNeverPull", "is not present with pull policy of Never"),
    ] {
        let uid = node
            .api
            .create(pod(name).container("main", SLEEP).volume(volume("v", of_image(reference, policy)), "/v").0);
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

pub(crate) fn claim(name: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("{name}-uid")},
        "spec": {"volumeName": format!("pv-{name}")},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    }))
    .unwrap()
}

/// A claim that is bound to a volume.
pub(crate) fn put(node: &Node, name: &str, spec: Value) {
    node.api.storage(|all| {
        all.claims.insert(name.to_owned(), claim(name));
        all.volumes.insert(format!("pv-{name}"), persistent(name, spec));
    });
}

pub(crate) fn of_claim(name: &str) -> Volume {
    volume("data", json!({"persistentVolumeClaim": {"claimName": name}}))
}

#[tokio::test]
async fn claims_show_what_they_are_bound_to() {
    // A9.1, A9.3, A9.16, A9.17, A9.19, A9.22, A10.2, A21.2
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

    // Whoever comes second with another group is told that the volume has one.
    let second = with_group(pod("second").container("main", SLEEP), 4343).volume(of_claim("local"), "/local");
    let second = run(&node, second).await;
    let text = "The requested fsGroup is 4343, but the volume pv-local has GID 4242. The volume may not be shareable.";
    until_event(&node, &format!("second  AlreadyMountedVolume: {text}")).await;
    assert_eq!(fs::metadata(local.join("precious")).unwrap().gid(), 4242);
    end(&node, &second).await;

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
    // A9.19: a claim that was made for the pod is the pod's.
    node.api.storage(|all| {
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "two", "uid": "two-uid", "controller": true}]);
        let claim = all.claims.get_mut("two-ephemeral").unwrap();
        claim.metadata.owner_references = serde_json::from_value(owner).unwrap();
    });
    let two = waiting.last().unwrap();
    node.api.until(two, "ready", |p| condition(p, "Ready")).await;
    assert_eq!(exec(&node, two, "cat /data/precious").await, "x");
    for uid in waiting {
        end(&node, &uid).await;
    }
    node.stop().await;
}

/// A pod that uses its claim as a device.
pub(crate) fn maps(name: &str, claim: &str) -> Builder {
    let devices = json!([{"name": "data", "devicePath": "/dev/data"}]);
    let pod = pod(name).container("main", SLEEP).volume(of_claim(claim), "/data");
    pod.with(|c| (c.volume_mounts, c.volume_devices) = (None, serde_json::from_value(devices).unwrap()))
}
