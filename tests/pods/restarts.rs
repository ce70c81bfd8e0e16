//! Containers that end, and agents that do.

use std::time::Duration;

use crate::node::{Node, condition, phase, pod, state, status};

#[tokio::test]
async fn the_second_restart_waits() {
    // A3.8, A3.9
    let node = Node::start().await;
    let uid = node.api.create(pod("crash").container("main", "exit 7").0);
    let waiting = node
        .api
        .until(&uid, "back-off", |p| state(status(p, "main").state.as_ref()) == "waiting CrashLoopBackOff")
        .await;
    let main = status(&waiting, "main");
    assert_eq!((main.restart_count, phase(&waiting)), (1, "Running"));
    assert_eq!(state(main.last_state.as_ref()), "terminated 7 Error");
    let message = main.state.unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, format!("back-off 10s restarting failed container=main pod=crash_default({uid})"));
    let event = format!(
        "crash spec.containers{{main}} BackOff: Back-off restarting failed container main in pod crash_default({uid})"
    );
    assert!(node.api.events().contains(&event), "{:#?}", node.api.events());
    let again = node.api.until(&uid, "restarted", |p| status(p, "main").restart_count == 2).await;
    assert_eq!(phase(&again), "Running");
    node.api.delete(&uid, 30);
    node.api.until_gone(&uid).await;
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn a_new_agent_adopts_what_runs_and_ends_what_nobody_wants() {
    // A1.2, A1.14, A1.15, A2.23
    let mut node = Node::start().await;
    let script = "while :; do sleep 0.1; done";
    let stays = node.api.create(pod("stays").init("i", "true").container("main", script).0);
    let vanishes = node.api.create(pod("vanishes").container("main", script).0);
    let before = node.api.until(&stays, "ready", |p| condition(p, "Ready")).await;
    node.api.until(&vanishes, "ready", |p| condition(p, "Ready")).await;

    node.stop_agent().await;
    node.api.remove(&vanishes);
    node.start_agent();
    node.until_nothing_is_left(&vanishes).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = node.api.pod(&stays).unwrap();
    assert_eq!(before.status, after.status, "no container was touched, and nothing else is reported");

    node.api.delete(&stays, 1);
    node.api.until_gone(&stays).await;
    node.until_nothing_is_left(&stays).await;
    node.stop().await;
}
