//! Names, and groups of this host.

use super::*;

fn cgroups(driver: CgroupDriver, root: &str) -> Cgroups {
    Cgroups::open(CgroupConfig { root: root.into(), driver, pod_pids_limit: Some(100), ..CgroupConfig::default() })
        .expect("this host has control groups")
}

#[test]
fn parents_are_named_as_the_driver_wants() {
    // A12.2
    for (driver, qos, expected) in [
        (CgroupDriver::Cgroupfs, QosClass::Guaranteed, "/kubepods/podab-c"),
        (CgroupDriver::Cgroupfs, QosClass::Burstable, "/kubepods/burstable/podab-c"),
        (CgroupDriver::Cgroupfs, QosClass::BestEffort, "/kubepods/besteffort/podab-c"),
        (CgroupDriver::Systemd, QosClass::Guaranteed, "kubepods-podab_c.slice"),
        (CgroupDriver::Systemd, QosClass::Burstable, "kubepods-burstable-podab_c.slice"),
    ] {
        let cgroups = cgroups(driver, "/");
        assert_eq!(cgroups.pod_parent(qos, "ab-c"), expected);
        let group = cgroups.path(&cgroups.names(qos, Some("ab-c")));
        let last = group.rsplit('/').next().unwrap();
        assert_eq!(cgroups.uid_of(&cgroups.names(qos, None), last).as_deref(), Some("ab-c"));
    }
}

#[test]
fn groups_lie_below_the_root_that_is_configured() {
    // A12.2
    let path = |driver, root| {
        let cgroups = cgroups(driver, root);
        cgroups.path(&cgroups.names(QosClass::BestEffort, None))
    };
    assert_eq!(path(CgroupDriver::Cgroupfs, "/a/b.slice"), "a/b.slice/kubepods/besteffort");
    let slices = "a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-besteffort.slice";
    assert_eq!(path(CgroupDriver::Systemd, "/a-b.slice"), slices);
    assert_eq!(path(CgroupDriver::Systemd, "/a/b"), slices);
}

/// Needs root, and cpu, memory and pids.
#[test]
fn a_group_is_made_limited_and_removed() {
    // A12.5, A12.6
    let root = format!("stoker-cgroup-test-{}", std::process::id());
    let cgroups = cgroups(CgroupDriver::Cgroupfs, &root);
    let limits = PodLimits {
        qos: QosClass::Burstable,
        shares: 204,
        milli_cpu: Some(500),
        memory_bytes: Some(64 << 20),
        hugepages: BTreeMap::new(),
    };
    let path = cgroups.path(&cgroups.names(QosClass::Burstable, Some("u1")));
    cgroups.make_tree().expect("the tree");
    cgroups.make_pod("u1", &limits).expect("the pod");
    let read = |controller: &str, file: &str| {
        let tree = match &cgroups.hierarchy {
            Hierarchy::V2(root) => root,
            Hierarchy::V1 { controllers, .. } => &controllers[controller],
        };
        fs::read_to_string(tree.join(&path).join(file)).expect("a limit")
    };
    if cgroups.is_v2() {
        assert_eq!(read("cpu", "cpu.max").trim(), "50000 100000");
        assert_eq!(read("memory", "memory.max").trim(), (64 << 20).to_string());
    } else {
        assert_eq!(read("cpu", "cpu.shares").trim(), "204");
        assert_eq!(read("cpu", "cpu.cfs_quota_us").trim(), "50000");
        assert_eq!(read("memory", "memory.limit_in_bytes").trim(), (64 << 20).to_string());
    }
    assert_eq!(read("pids", "pids.max").trim(), "100");

    // A13.2
    cgroups.limit_pods(2048, Some(1 << 30), Some(1000)).expect("limits of all pods");
    let tree = match &cgroups.hierarchy {
        Hierarchy::V2(root) => root,
        Hierarchy::V1 { controllers, .. } => &controllers["pids"],
    };
    let all = tree.join(&root).join("kubepods/pids.max");
    assert_eq!(fs::read_to_string(all).expect("a limit").trim(), "1000");
    let missing = cgroups.limit_existing(&format!("/{root}/none"), Some(100), None, None);
    assert!(matches!(missing, Err(CgroupError::NoGroup(_))));
    cgroups.limit_existing(&format!("/{root}/kubepods"), Some(100), None, None).expect("one that is there");

    let pids = |limit: &str| {
        let tree = match &cgroups.hierarchy {
            Hierarchy::V2(root) => root,
            Hierarchy::V1 { controllers, .. } => &controllers["pids"],
        };
        let group = tree.join(&path);
        fs::write(group.join("pids.max"), limit).expect("a limit");
        group
    };
    let group = pids("max");
    cgroups.make_pod("u1", &limits).expect("the pod again");
    assert_eq!(read("pids", "pids.max").trim(), "100", "a group that was half made is finished");
    fs::create_dir(group.join("container")).expect("a container");
    pids("50");
    cgroups.make_pod("u1", &limits).expect("the pod again");
    assert_eq!(read("pids", "pids.max").trim(), "50", "a group in use is left alone");
    assert_eq!(cgroups.pods(), BTreeSet::from([(QosClass::Burstable, "u1".to_owned())]));
    cgroups.remove_pod(QosClass::Burstable, "u1").expect("an empty group goes");
    cgroups.remove_pod(QosClass::Burstable, "u1").expect("again is harmless");
    assert!(cgroups.pods().is_empty());
    for tree in cgroups.hierarchy.trees() {
        remove_below(&tree.join(&root)).expect("empty groups go");
    }
}

/// Needs root, and cpu.
#[test]
fn who_has_no_limit_is_not_limited() {
    // A12.3, A12.5, A12.6
    let root = format!("stoker-cgroup-test-free-{}", std::process::id());
    let mut cgroups = cgroups(CgroupDriver::Cgroupfs, &root);
    cgroups.config.pod_pids_limit = None;
    cgroups.make_tree().expect("the tree");
    cgroups.set_burstable_shares(3584).expect("shares");
    let limits = |milli_cpu| PodLimits {
        qos: QosClass::BestEffort,
        shares: 2,
        milli_cpu,
        memory_bytes: None,
        hugepages: BTreeMap::new(),
    };
    cgroups.make_pod("free", &limits(None)).expect("a pod");
    cgroups.config.cpu_cfs_quota = false;
    cgroups.make_pod("unbound", &limits(Some(500))).expect("a pod");
    let read = |qos, pod: Option<&str>, controller: &str, v1: &str, v2: &str| {
        let group = cgroups.path(&cgroups.names(qos, pod));
        let file = if cgroups.is_v2() { v2 } else { v1 };
        cgroups.read(controller, &group, file).expect("a limit")
    };
    let v2 = cgroups.is_v2();
    for pod in ["free", "unbound"] {
        let quota = read(QosClass::BestEffort, Some(pod), "cpu", "cpu.cfs_quota_us", "cpu.max");
        assert_eq!(quota, if v2 { "max 100000" } else { "-1" }, "{pod}");
        assert_eq!(
            read(QosClass::BestEffort, Some(pod), "cpu", "cpu.shares", "cpu.weight"),
            if v2 { "1" } else { "2" }
        );
        assert_eq!(read(QosClass::BestEffort, Some(pod), "pids", "pids.max", "pids.max"), "max");
        assert_eq!(cgroups.pod_limits(QosClass::BestEffort, pod).expect("limits").memory_bytes, None);
    }
    let best_effort = read(QosClass::BestEffort, None, "cpu", "cpu.shares", "cpu.weight");
    let burstable = read(QosClass::Burstable, None, "cpu", "cpu.shares", "cpu.weight");
    assert_eq!((best_effort.as_str(), burstable.as_str()), if v2 { ("1", "137") } else { ("2", "3584") });
    for tree in cgroups.hierarchy.trees() {
        remove_below(&tree.join(&root)).expect("empty groups go");
    }
}

/// In a directory, since not every kernel has the controller.
#[test]
fn huge_pages_are_limited_for_pods_alone() {
    // A12.5, A12.6
    let dir = tempfile::tempdir().unwrap();
    let controllers = ["cpu", "memory", "pids", "hugetlb"].map(|name| (name.to_owned(), dir.path().join(name)));
    let config = CgroupConfig { root: "/".into(), ..CgroupConfig::default() };
    let hierarchy = Hierarchy::V1 { controllers: controllers.into(), others: Vec::new() };
    let cgroups = Cgroups { config, hierarchy, kept: KeptGroups::default(), counts_swap: false };
    let sizes = crate::cgroup::limits::hugepage_sizes();
    let file = |group: &str, size: &str| {
        let name = format!("hugetlb.{}.limit_in_bytes", crate::cgroup::kernel_size(size));
        dir.path().join("hugetlb").join(group).join(name)
    };
    for group in ["kubepods", "kubepods/burstable", "kubepods/besteffort", "kubepods/burstable/podu"] {
        fs::create_dir_all(dir.path().join("hugetlb").join(group)).unwrap();
        for size in &sizes {
            fs::write(file(group, size), "no limit").unwrap();
        }
    }
    let pod = cgroups.path(&cgroups.names(QosClass::Burstable, Some("u")));
    let asked: BTreeMap<String, i64> = sizes.first().map(|size| (size.clone(), 4 << 20)).into_iter().collect();
    cgroups.limit_hugepages(&pod, &asked).expect("limits");
    for size in &sizes {
        let expected = asked.get(size).copied().unwrap_or_default().to_string();
        assert_eq!(fs::read_to_string(file(&pod, size)).unwrap(), expected, "{size}: as many as asked for, else none");
        for group in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            assert_eq!(fs::read_to_string(file(group, size)).unwrap(), "no limit", "{group}");
        }
    }
}

#[test]
#[ignore = "needs systemd as the machine's init"]
fn slices_are_made_limited_and_ended() {
    // A12.2, A12.5, A12.6
    let cgroups = cgroups(CgroupDriver::Systemd, "/stokertest");
    let limits = PodLimits {
        qos: QosClass::Burstable,
        shares: 1024,
        milli_cpu: Some(500),
        memory_bytes: Some(64 << 20),
        hugepages: BTreeMap::new(),
    };
    cgroups.make_tree().expect("the tree");
    cgroups.make_tree().expect("the tree again");
    cgroups.set_burstable_shares(2048).expect("shares");
    cgroups.make_pod("u-1", &limits).expect("the pod");
    let asked = |unit: &str, property: &str| {
        let output = std::process::Command::new("systemctl").args(["show", "-P", property, unit]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let pod = "stokertest-kubepods-burstable-podu_1.slice";
    assert_eq!(cgroups.pod_parent(QosClass::Burstable, "u-1"), pod);
    assert_eq!(asked(pod, "ActiveState"), "active");
    assert_eq!(asked(pod, "TasksMax"), "100");
    let tree = cgroups.hierarchy.trees()[0].to_owned();
    let group = tree.join(cgroups.path(&cgroups.names(QosClass::Burstable, Some("u-1"))));
    let check = || {
        if cgroups.is_v2() {
            let read = |file: &str| fs::read_to_string(group.join(file)).expect("a limit").trim().to_owned();
            assert_eq!(read("cpu.max"), "50000 100000");
            assert_eq!(read("cpu.weight"), "39");
            assert_eq!(read("memory.max"), (64 << 20).to_string());
            assert_eq!(read("pids.max"), "100");
        }
    };
    check();
    let reloaded = std::process::Command::new("systemctl").arg("daemon-reload").status().expect("systemctl");
    assert!(reloaded.success());
    check();
    assert_eq!(cgroups.pods(), BTreeSet::from([(QosClass::Burstable, "u-1".to_owned())]));
    cgroups.remove_pod(QosClass::Burstable, "u-1").expect("the slice ends");
    cgroups.remove_pod(QosClass::Burstable, "u-1").expect("again is harmless");
    assert!(!group.exists() && cgroups.pods().is_empty());
    assert_ne!(asked(pod, "ActiveState"), "active");
    for slice in
        ["stokertest-kubepods-besteffort", "stokertest-kubepods-burstable", "stokertest-kubepods", "stokertest"]
    {
        systemd::stop(&format!("{slice}.slice")).expect("it ends");
    }
}
