//! New resources for running containers, down to the kernel.

use std::fs;

use k8s_openapi::api::core::v1::{ContainerResizePolicy, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stoker_model::pod::PodUid;

use crate::node::{Node, condition, pod, state, status};

const LONG: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn resources(cpu: &str, memory: &str) -> ResourceRequirements {
    let list = [("cpu", cpu), ("memory", memory)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
    ResourceRequirements { requests: Some(list.clone().into()), limits: Some(list.into()), ..Default::default() }
}

fn wants(cpu: &'static str, memory: &'static str) -> impl Fn(&mut Pod) {
    move |pod| pod.spec.as_mut().unwrap().containers[0].resources = Some(resources(cpu, memory))
}

impl Node {
    /// A value of a pod's control group, or of its container's.
    fn group(&self, uid: &PodUid, container: bool, controller: &str, v1: &str, v2: &str) -> String {
        self.group_of(uid, container.then_some("main"), controller, v1, v2)
    }

    fn group_of(&self, uid: &PodUid, container: Option<&str>, controller: &str, v1: &str, v2: &str) -> String {
        let root = self.lab.path().file_name().unwrap();
        let id = container.and_then(|name| status(&self.api.pod(uid).unwrap(), name).container_id).unwrap_or_default();
        let inside = id.trim_start_matches("containerd://");
        let of = |tree: &str| {
            let group = std::path::Path::new("/sys/fs/cgroup").join(tree).join(root).join("kubepods");
            group.join(format!("pod{uid}")).join(inside)
        };
        let read = |path: std::path::PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        read(of(controller).join(v1)).or_else(|| read(of("").join(v2))).unwrap_or_default()
    }

    fn memory(&self, uid: &PodUid) -> [String; 2] {
        [false, true].map(|inside| self.group(uid, inside, "memory", "memory.limit_in_bytes", "memory.max"))
    }

    fn quota(&self, uid: &PodUid) -> [String; 2] {
        let quota = |inside| self.group(uid, inside, "cpu", "cpu.cfs_quota_us", "cpu.max");
        [false, true].map(|inside| quota(inside).split(' ').next().unwrap_or_default().to_owned())
    }
}

#[tokio::test]
async fn a_running_pod_gets_other_resources() {
    // A15.1, A2.18, A12.3, A12.5, A12.7, A12.12, A21.2
    let mut node = Node::start().await;
    let built = pod("p").container("main", LONG).with(|c| {
        c.resources = Some(resources("100m", "64Mi"));
        let policy = |name: &str, restart: &str| ContainerResizePolicy {
            resource_name: name.into(),
            restart_policy: restart.into(),
        };
        c.resize_policy = Some(vec![policy("cpu", "NotRequired"), policy("memory", "NotRequired")]);
    });
    let uid = node.api.create(built.0);
    let running = node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    let id = status(&running, "main").container_id;
    assert_eq!(status(&running, "main").resources, Some(resources("100m", "64Mi")));
    assert_eq!(node.memory(&uid), ["67108864", "67108864"]);
    assert_eq!(node.quota(&uid), ["10000", "10000"]);
    let shares = [false, true].map(|inside| node.group(&uid, inside, "cpu", "cpu.shares", "cpu.weight"));
    assert!(shares[0] == "102" && shares[1] == "102" || shares[0] == "4", "{shares:?}");
    // Where the kernel counts swap, memory and swap together have the same limit, or swap has none left.
    let swap = node.group(&uid, true, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
    assert!(["", "0", "67108864"].contains(&swap.as_str()), "{swap}");

    node.api.change(&uid, wants("200m", "128Mi"));
    let done = |cpu: &'static str, memory: &'static str| {
        move |p: &Pod| {
            status(p, "main").resources == Some(resources(cpu, memory)) && !condition(p, "PodResizeInProgress")
        }
    };
    let resized = node.api.until(&uid, "resized", done("200m", "128Mi")).await;
    let main = status(&resized, "main");
    assert_eq!((main.container_id, main.restart_count), (id.clone(), 0));
    assert_eq!(main.allocated_resources, resources("200m", "128Mi").requests);
    assert_eq!(
        (node.memory(&uid), node.quota(&uid)),
        (["134217728"; 2].map(String::from), ["20000"; 2].map(String::from))
    );
    let events = node.api.events();
    let told = |start: &str| events.iter().any(|e| e.starts_with(start));
    assert!(told("p  ResizeStarted: Pod resize started: {\"containers\":[{\"name\":\"main\""), "{events:#?}");
    assert!(told("p  ResizeCompleted: Pod resize completed: {"), "{events:#?}");

    // While no agent runs: it is caught up with. Then smaller, too small, too large, and fitting again.
    node.stop_agent().await;
    node.api.change(&uid, wants("300m", "96Mi"));
    node.start_agent();
    node.api.until(&uid, "resized after a restart", done("300m", "96Mi")).await;
    assert_eq!(node.memory(&uid), ["100663296"; 2].map(String::from));
    node.api.change(&uid, wants("300m", "4Ki"));
    let failed = |p: &Pod| {
        let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| {
            c.type_ == "PodResizeInProgress"
                && c.reason.as_deref() == Some("Error")
                && c.message.as_deref().is_some_and(|m| m.starts_with("cannot decrease memory limits: "))
        })
    };
    node.api.until(&uid, "refused", failed).await;
    assert_eq!(node.memory(&uid), ["100663296"; 2].map(String::from));
    node.api.change(&uid, wants("64", "96Mi"));
    let deferred = |p: &Pod| {
        let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| {
            c.type_ == "PodResizePending"
                && c.reason.as_deref() == Some("Deferred")
                && c.message.as_deref().is_some_and(|m| m.starts_with("Node didn't have enough resource: cpu"))
        })
    };
    node.api.until(&uid, "deferred", deferred).await;
    node.api.change(&uid, wants("50m", "96Mi"));
    let small = node.api.until(&uid, "small", done("50m", "96Mi")).await;
    assert!(!condition(&small, "PodResizePending"));
    assert_eq!(node.quota(&uid), ["5000"; 2].map(String::from));
    assert_eq!((status(&small, "main").container_id, status(&small, "main").restart_count), (id, 0));

    // A resource whose policy wants a new container.
    node.api.change(&uid, |p| {
        wants("50m", "200Mi")(p);
        let policies = p.spec.as_mut().unwrap().containers[0].resize_policy.as_mut().unwrap();
        policies[1].restart_policy = "RestartContainer".into();
    });
    let again = |p: &Pod| {
        let main = status(p, "main");
        main.restart_count == 1 && main.state.is_some_and(|s| s.running.is_some())
    };
    let anew = node.api.until(&uid, "made anew", again).await;
    assert_eq!(state(status(&anew, "main").last_state.as_ref()), "terminated 0 Completed");
    node.api.until(&uid, "resized", done("50m", "200Mi")).await;
    assert_eq!(node.memory(&uid), ["209715200"; 2].map(String::from));
    node.api.delete(&uid, 2);
    node.api.until_gone(&uid).await;
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn an_init_container_is_resized_while_it_runs() {
    // A15.16
    let node = Node::start().await;
    let small = || Some(resources("100m", "64Mi"));
    let built = pod("early")
        .init("init", "until test -e /tmp/go; do sleep 0.1; done")
        .container("main", LONG)
        .with(|c| c.resources = small())
        .spec(|s| s.init_containers.as_mut().unwrap()[0].resources = small());
    let uid = node.api.create(built.0);
    let runs = |p: &Pod| state(status(p, "init").state.as_ref()) == "running";
    let running = node.api.until(&uid, "initializing", runs).await;
    let id = status(&running, "init").container_id.unwrap();
    node.api.change(&uid, |p| {
        p.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0].resources = Some(resources("200m", "96Mi"));
    });
    let done = |p: &Pod| {
        status(p, "init").resources == Some(resources("200m", "96Mi")) && !condition(p, "PodResizeInProgress")
    };
    let resized = node.api.until(&uid, "resized", done).await;
    assert_eq!(status(&resized, "init").container_id.as_ref(), Some(&id));
    assert_eq!(status(&resized, "init").allocated_resources, resources("200m", "96Mi").requests);
    let limit = node.group_of(&uid, Some("init"), "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (96 << 20).to_string());
    let go = ["/bin/busybox", "touch", "/tmp/go"].map(String::from).to_vec();
    let id = id.trim_start_matches("containerd://");
    node.lab.runtime.exec_sync(id, go, std::time::Duration::from_secs(10)).await.unwrap();
    let ready = node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    assert_eq!(status(&ready, "init").restart_count, 0);
    node.api.delete(&uid, 2);
    node.api.until_gone(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn whole_pods_are_resized_and_wait_their_turn() {
    // A15.1, A15.16, A21.2
    let node = Node::start().await;
    let of_pod = |cpu: &'static str, memory: &'static str| {
        move |p: &mut Pod| p.spec.as_mut().unwrap().resources = Some(resources(cpu, memory))
    };
    let mut whole = pod("whole").container("main", LONG).0;
    of_pod("1", "64Mi")(&mut whole);
    let whole = node.api.create(whole);
    let mut built = ["first", "second"]
        .map(|name| pod(name).container("main", LONG).with(|c| c.resources = Some(resources("1", "64Mi"))).0);
    built[1].spec.as_mut().unwrap().priority = Some(10);
    let [first, second] = built.map(|pod| node.api.create(pod));
    for uid in [&whole, &first, &second] {
        node.api.until(uid, "ready", |p| condition(p, "Ready")).await;
    }
    // A container without a limit of its own is bounded by the pod's.
    assert_eq!(node.memory(&whole), ["67108864", "67108864"]);
    node.api.change(&whole, of_pod("2", "128Mi"));
    let shows = |cpu: &'static str, memory: &'static str| {
        move |p: &Pod| {
            let status = p.status.clone().unwrap_or_default();
            status.resources == Some(resources(cpu, memory)) && !condition(p, "PodResizeInProgress")
        }
    };
    let resized = node.api.until(&whole, "resized", shows("2", "128Mi")).await;
    assert_eq!(resized.status.as_ref().unwrap().allocated_resources, resources("2", "128Mi").requests);
    assert_eq!(status(&resized, "main").restart_count, 0);
    assert_eq!(
        (node.memory(&whole), node.quota(&whole)),
        (["134217728"; 2].map(String::from), ["200000"; 2].map(String::from))
    );

    // All four cores are given away. Both want two, and one core becomes free: the one of higher priority gets it, though it asked later.
    let pending = |p: &Pod| condition(p, "PodResizePending");
    node.api.change(&first, wants("2", "64Mi"));
    node.api.until(&first, "deferred", pending).await;
    node.api.change(&second, wants("2", "64Mi"));
    node.api.until(&second, "deferred", pending).await;
    node.api.change(&whole, of_pod("1", "128Mi"));
    let done = |p: &Pod| status(p, "main").resources == Some(resources("2", "64Mi")) && !pending(p);
    node.api.until(&second, "given", done).await;
    assert!(pending(&node.api.pod(&first).unwrap()), "there is no more room");
    // What ends makes room, and a second look at it needs no event.
    node.api.delete(&whole, 1);
    node.api.until(&first, "given", done).await;
    let deferred =
        node.api.events().iter().filter(|e| e.starts_with("first  ResizeDeferred: Pod resize Deferred: ")).count();
    assert_eq!(deferred, 1, "{:#?}", node.api.events());
    for uid in [&first, &second] {
        node.api.delete(uid, 1);
        node.api.until_gone(uid).await;
    }
    node.stop().await;
}
