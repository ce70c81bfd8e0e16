//! What the node refuses, what it makes place for, and what containers are given to run with.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, EmptyDirVolumeSource, EnvVar, EnvVarSource, FileKeySelector, PodOS,
    PodSecurityContext, ResourceRequirements, SecurityContext, Sysctl, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::lab::BUSYBOX;
use crate::node::{Builder, Node, condition, phase, pod, state, status};

#[tokio::test]
async fn a_critical_pod_gets_its_place_and_others_are_refused_with_their_reason() {
    // A2.19, A6.2, A6.6, A6.8, A7.6, A12.6, A21.1
    let mut node = Node::start().await;
    let manifests = node.path("manifests");
    fs::create_dir(&manifests).unwrap();
    node.stop_agent().await;
    node.static_path = Some(manifests.clone());
    node.start_agent();
    let asks = |cpu: &str| {
        let requests = Some([("cpu".to_owned(), Quantity(cpu.to_owned()))].into());
        Some(ResourceRequirements { requests, ..ResourceRequirements::default() })
    };
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let low = node.api.create(pod("low").container("main", script).with(|c| c.resources = asks("3")).0);
    let small = node.api.create(pod("small").container("main", script).with(|c| c.resources = asks("500m")).0);
    for uid in [&low, &small] {
        node.api.until(uid, "ready", |p| condition(p, "Ready")).await;
    }
    // A12.6: all that burstable pods ask for is what they weigh together.
    let weighs = |of_v1: &str, of_v2: &str| {
        let group = node.path("").file_name().map(Path::new).unwrap().join("kubepods/burstable");
        let trees = Path::new("/sys/fs/cgroup");
        let read = |path: PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        match read(trees.join("cpu").join(&group).join("cpu.shares")) {
            Some(shares) => shares == of_v1,
            None => read(trees.join(&group).join("cpu.weight")).is_some_and(|weight| weight == of_v2),
        }
    };
    crate::volumes::until("3500m", || weighs("3584", "137")).await;
    let manifest = format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: critical}}
spec:
  hostNetwork: true
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: IfNotPresent
    command: [/bin/busybox, sh, -c, \"{script}\"]
    resources: {{requests: {{cpu: 2}}}}
"
    );
    fs::write(manifests.join("critical.yaml"), manifest).unwrap();
    let ended = node.api.until(&low, "preempted", |p| phase(p) == "Failed").await;
    let of_pod = ended.status.as_ref().unwrap();
    assert_eq!(of_pod.reason.as_deref(), Some("Preempting"));
    assert_eq!(of_pod.message.as_deref(), Some("Preempted in order to admit critical pod"));
    let disrupted = of_pod.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(disrupted.reason.as_deref(), Some("TerminationByKubelet"));
    let message = "Pod was preempted by Kubelet to accommodate a critical pod.";
    assert_eq!(disrupted.message.as_deref(), Some(message));
    let mut runs = false;
    for _ in 0..400 {
        runs = node.api.named("critical-node-1").is_some_and(|(_, p)| condition(&p, "Ready"));
        if runs {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(runs, "{:#?}", node.api.events());
    assert_eq!(phase(&node.api.pod(&small).unwrap()), "Running", "as few as possible");
    crate::volumes::until("2500m", || weighs("2560", "98")).await;

    let events = node.api.events();
    assert!(events.iter().any(|e| e == "low  Preempting: Preempted in order to admit critical pod"), "{events:#?}");
    // A23.3
    let counted = stoker_model::metrics::text(0);
    assert!(counted.contains("kubelet_preemptions{preemption_signal=\"cpu\"} 1\n"), "{counted}");
    let forbidden = pod("forbidden").container("main", "true").spec(|spec| {
        let sysctls = Some(vec![Sysctl { name: "kernel.msgmax".into(), value: "1".into() }]);
        spec.security_context = Some(PodSecurityContext { sysctls, ..PodSecurityContext::default() });
    });
    let forbidden = node.api.create(forbidden.0);
    let refused = node.api.until(&forbidden, "refused", |p| phase(p) == "Failed").await;
    let text = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    let of_pod = refused.status.as_ref().unwrap();
    assert_eq!(of_pod.reason.as_deref(), Some("SysctlForbidden"));
    assert_eq!(of_pod.message, Some(format!("Pod was rejected: {text}")));
    assert!(node.api.events().contains(&format!("forbidden  SysctlForbidden: {text}")));

    // A label that the watch of the Node has not told yet; and one that nobody has.
    let selects = |name: &str, zone: &str| {
        let selector = [("zone".to_owned(), zone.to_owned())].into();
        pod(name).container("main", script).spec(|spec| spec.node_selector = Some(selector))
    };
    node.api.put_node_label("zone", "a");
    let fits = node.api.create(selects("fits", "a").0);
    node.api.until(&fits, "ready", |p| condition(p, "Ready")).await;
    let other = node.api.create(selects("other", "b").0);
    let refused = node.api.until(&other, "refused", |p| phase(p) == "Failed").await;
    assert_eq!(refused.status.as_ref().unwrap().reason.as_deref(), Some("NodeAffinity"));
    node.stop().await;
}

#[tokio::test]
async fn whoever_is_refused_is_told_why_in_status_and_event() {
    // A6.1, A6.3, A6.4, A6.8
    let node = Node::start().await;
    let plain = |name: &str| pod(name).container("main", "true");
    let asks = |name: &str, resource: &str, amount: &str| {
        let requests = Some([(resource.to_owned(), Quantity(amount.to_owned()))].into());
        plain(name).with(|c| c.resources = Some(ResourceRequirements { requests, ..ResourceRequirements::default() }))
    };
    let context = |name: &str, context: PodSecurityContext| plain(name).spec(|s| s.security_context = Some(context));
    let sysctls = Some(vec![Sysctl { name: "kernel.msgmax".into(), value: "1".into() }]);
    let strict = Some("Strict".to_owned());
    let profile = Some(AppArmorProfile { type_: "RuntimeDefault".into(), localhost_profile: None });
    let mut labelled = plain("labelled");
    labelled.0.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
    let windows = plain("windows").spec(|s| s.os = Some(PodOS { name: "windows".into() }));
    let selector = Some([("zone".to_owned(), "b".to_owned())].into());
    let missing = "Pod requires node features that are not available: UserNamespacesHostNetworkSupport";
    let mut refused = vec![
        (
            asks("large", "cpu", "64"),
            "OutOfcpu",
            "Node didn't have enough resource: cpu, requested: 64000, used: 0, capacity: 4000",
        ),
        (
            context("sysctl", PodSecurityContext { sysctls, ..PodSecurityContext::default() }),
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (windows, "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"),
        (
            labelled,
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ),
        (
            context("strict", PodSecurityContext { supplemental_groups_policy: strict, ..Default::default() }),
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ),
        (
            plain("selects").spec(|s| s.node_selector = selector),
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            plain("elsewhere").spec(|s| s.node_name = Some("node-2".into())),
            "NodeName",
            "Predicate NodeName failed: node(s) didn't match the requested node name",
        ),
        (plain("users").spec(|s| s.host_users = Some(false)), "PodFeatureUnsupported", missing),
    ];
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    if !enabled {
        refused.push((
            context("confined", PodSecurityContext { app_armor_profile: profile, ..Default::default() }),
            "AppArmor",
            "Cannot enforce AppArmor: AppArmor is not enabled on the host",
        ));
    }
    for (pod, reason, text) in refused {
        is_refused(&node, pod, reason, text).await;
    }
    node.change_node(|node| node.pressures = vec!["MemoryPressure".into()]);
    is_refused(&node, plain("late"), "Evicted", "The node had condition: [MemoryPressure]. ").await;
    node.change_node(|node| (node.pressures, node.shutting_down) = (Vec::new(), true));
    is_refused(&node, plain("later"), "NodeShutdown", "Pod was rejected as the node is shutting down.").await;
    node.change_node(|node| node.shutting_down = false);

    // Where upstream would not know the node (`InvalidNodeInfo`), pods wait until it is known. `UnknownReason` and
    // `UnexpectedPredicateFailureType` are of checks that gave no reason: there is none of that kind.
    let mut known = Default::default();
    node.change_node(|node| known = std::mem::take(&mut node.allocatable));
    let early = node.api.create(pod("early").container("main", "sleep 1000").0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(node.api.pod(&early).unwrap().status.is_none(), "nothing is decided yet");
    node.change_node(|node| node.allocatable = known);
    node.api.until(&early, "ready", |p| condition(p, "Ready")).await;
    // A23.3
    let counted = stoker_model::metrics::text(0);
    assert!(counted.contains("kubelet_admission_rejections_total{reason=\""), "{counted}");
    node.stop().await;
}

async fn is_refused(node: &Node, pod: Builder, reason: &str, text: &str) {
    let name = pod.0.metadata.name.clone().unwrap();
    let uid = node.api.create(pod.0);
    let refused = node.api.until(&uid, reason, |p| phase(p) == "Failed").await;
    let status = refused.status.clone().unwrap();
    assert_eq!((status.reason.as_deref(), status.message), (Some(reason), Some(format!("Pod was rejected: {text}"))));
    assert!(status.container_statuses.is_none(), "nothing was made");
    assert!(node.api.is_warning(&format!("{name}  {reason}: {text}")), "{:#?}", node.api.events());
}

#[tokio::test]
async fn containers_run_as_their_spec_says() {
    // A8.7, A10.2, A10.3, A10.4, A10.11, A11.2, A12.8
    let node = Node::start().await;
    let scratch =
        || Volume { name: "scratch".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    let mount = VolumeMount { name: "scratch".into(), mount_path: "/scratch".into(), ..VolumeMount::default() };
    let from_file = |name: &str, key: &str, optional: bool| EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            file_key_ref: Some(FileKeySelector {
                key: key.into(),
                optional: Some(optional),
                path: "env".into(),
                volume_name: "scratch".into(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let script = "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapEff|Seccomp:' /proc/self/status; touch /x || echo read-only; \
                  echo oom=$(cat /proc/self/oom_score_adj); echo colour=$COLOUR none=${NONE-unset}; sleep 1000";
    let made = pod("made")
        .init("writer", "printf \"COLOUR='deep blue'\\n\" > /scratch/env; chmod 644 /scratch/env")
        .spec(|spec| {
            spec.init_containers.as_mut().unwrap()[0].volume_mounts = Some(vec![mount]);
            spec.security_context = Some(PodSecurityContext {
                run_as_user: Some(1000),
                run_as_group: Some(2000),
                fs_group: Some(3000),
                supplemental_groups: Some(vec![4000]),
                run_as_non_root: Some(true),
                ..PodSecurityContext::default()
            });
        })
        .container("main", script)
        .volume(scratch(), "/scratch")
        .with(|c| {
            c.env = Some(vec![from_file("COLOUR", "COLOUR", false), from_file("NONE", "NONE", true)]);
            c.security_context = Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
                ..SecurityContext::default()
            });
        });
    let uid = node.api.create(made.0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    let log = node.path(&format!("pod-logs/default_made_{uid}/main/0.log"));
    let mut lines = String::new();
    for _ in 0..100 {
        lines = fs::read_to_string(&log).unwrap_or_default();
        if lines.contains("colour=") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for expected in [
        "F 1000\n",
        "F 2000\n",
        "F 2000 3000 4000\n",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "Seccomp:\t0",
        "F read-only\n",
        "F oom=1000\n",
        "F colour=deep blue none=unset\n",
    ] {
        assert!(lines.contains(expected), "{expected}: {lines}");
    }

    // Some capabilities more, or all of them and every device of the node.
    let standard = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "core", "fd", "shm"];
    let devices = fs::read_dir("/dev").unwrap().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_char_device()));
    let mut names = devices.map(|e| e.file_name().to_string_lossy().into_owned());
    let special = names.find(|name| !standard.contains(&name.as_str()) && !name.starts_with("std")).unwrap_or_default();
    let look = format!(
        "grep -E 'CapEff' /proc/self/status; echo oom=$(cat /proc/self/oom_score_adj); ls -d /dev/{special} 2>&1; echo looked; sleep 1000"
    );
    let capable = pod("capable").container("main", &look).with(|c| {
        let requests = [("memory".to_owned(), Quantity("1Gi".to_owned()))].into();
        c.resources = Some(ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() });
        let capabilities = Capabilities { add: Some(vec!["NET_ADMIN".into()]), drop: Some(vec!["ALL".into()]) };
        c.security_context = Some(SecurityContext { capabilities: Some(capabilities), ..SecurityContext::default() });
    });
    let mighty = pod("mighty").container("main", &look).with(|c| {
        c.security_context = Some(SecurityContext { privileged: Some(true), ..SecurityContext::default() });
    });
    let mine = fs::read_to_string("/proc/self/status").unwrap();
    let mine = mine.lines().find(|line| line.starts_with("CapBnd")).unwrap().split_whitespace().nth(1).unwrap();
    // A12.8: of the 4Gi that the node has one asks for a quarter.
    for (name, builder, capabilities, sees, score) in
        [("capable", capable, "0000000000001000", false, 750), ("mighty", mighty, mine, true, 1000)]
    {
        let uid = node.api.create(builder.0);
        let said = node.log_with(&uid, name, "main", "looked").await;
        assert!(said.contains(&format!("CapEff:\t{capabilities}\n")), "{name}: {said}");
        assert!(said.contains(&format!("oom={score}\n")), "{name}: {said}");
        if !special.is_empty() {
            assert_eq!(!said.contains("No such file"), sees, "{name}: {said}");
        }
    }

    // What is not there, and what this runtime cannot do, is told in so many words.
    let missing = pod("missing").container("main", "true").volume(scratch(), "/scratch");
    let missing = missing.with(|c| c.env = Some(vec![from_file("COLOUR", "COLOUR", false)]));
    let missing = node.api.create(missing.0);
    let waits = |reason: &'static str| {
        move |p: &k8s_openapi::api::core::v1::Pod| {
            state(status(p, "main").state.as_ref()) == format!("waiting {reason}")
        }
    };
    let seen = node.api.until(&missing, "an error", waits("CreateContainerConfigError")).await;
    let message = status(&seen, "main").state.unwrap().waiting.unwrap().message;
    assert_eq!(message.as_deref(), Some("couldn't parse env file"));

    let own_users =
        pod("users").container("main", "true").spec(|s| (s.host_users, s.host_network) = (Some(false), None));
    let own_users = node.api.create(own_users.0);
    let told =
        "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces";
    for _ in 0..100 {
        if node.api.events().iter().any(|e| e.ends_with(told)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(node.api.events().iter().any(|e| e.ends_with(told)), "{:#?}", node.api.events());
    node.api.until(&own_users, "pending", |p| phase(p) == "Pending").await;
    node.stop().await;
}
