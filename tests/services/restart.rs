//! The daemon comes and goes, others meddle: the kernel's tables stay what they should be.

use std::time::Duration;

use serde_json::json;
use stoker::service::Turn;
use stoker_model::service::NamespacedName;
use stoker_model::service::ServiceChange::{Complete, Restarting, ServiceGone};

use crate::lab::{Lab, endpoints, eventually, service};

const VIP: &str = "10.96.0.10:80";

/// B1.2
#[test]
fn nothing_is_written_before_the_lists_are_complete() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    [service(json!({}))].into_iter().chain(endpoints(&[1])).for_each(|change| daemon.tell(change));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!daemon.has_written() && lab.nft().is_empty());
    daemon.apply([Complete]);
    assert_eq!(lab.served_by("client", VIP), "pod1");
}

/// B2.6: while another proxy serves, no rule of ours is there; then all that changed meanwhile is, and what others do is repaired.
#[test]
fn two_proxies_take_turns() {
    let lab = Lab::with_pods(2);
    let daemon = lab.start();
    daemon.turn.send_replace(Turn::Unknown);
    [service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]).for_each(|change| daemon.tell(change));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!daemon.has_written() && lab.nft().is_empty(), "nobody knows of other proxies yet");
    daemon.turn.send_replace(Turn::Ours);
    eventually("it serves", || lab.answers_at_once("client", VIP));
    let mut open = lab.connect("client", VIP).unwrap();

    // As the other one has it: the kernel follows open connections as long as anybody has such chains and rules.
    lab.nft_command("add table ip kube-proxy");
    for (hook, priority) in [("prerouting", "-100"), ("output", "-100"), ("postrouting", "100")] {
        lab.nft_command(&format!("add chain ip kube-proxy {hook} {{ type nat hook {hook} priority {priority} ; }}"));
    }
    lab.nft_command("add rule ip kube-proxy postrouting ct state established counter");
    daemon.turn.send_replace(Turn::Theirs);
    eventually("its rules are gone", || !lab.nft().contains("stoker"));
    endpoints(&[2]).into_iter().for_each(|change| daemon.tell(change));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!lab.nft().contains("stoker"), "{}", lab.nft());
    assert!(open.still_answers(), "connections go on");

    daemon.turn.send_replace(Turn::Ours);
    eventually("it serves again", || lab.answers_at_once("client", VIP));
    assert_eq!(lab.served_by("client", VIP), "pod2");
    lab.nft_command("delete table ip stoker");
    eventually("and looks after its rules", || lab.answers_at_once("client", VIP));
}

/// B2.8: nothing is removed when the daemon stops, and a restart with the same cluster writes nothing.
#[test]
fn a_restart_touches_neither_connections_nor_tables() {
    let lab = Lab::with_pods(3);
    let cluster = || [service(json!({}))].into_iter().chain(endpoints(&[1, 2])).chain([Complete]);
    let first = lab.start();
    first.apply(cluster());
    let mut open = lab.connect("pod3", VIP).unwrap();
    let before = lab.nft();
    assert!(first.transactions() > 0);
    first.stop();
    assert_eq!(lab.nft(), before);
    assert!(lab.connect("pod3", VIP).is_ok());

    let second = lab.start();
    second.apply(cluster());
    assert!(second.has_written());
    assert_eq!(second.transactions(), 0);
    assert_eq!(lab.nft(), before);
    assert!(open.still_answers());
}

/// What changed while the daemon was away is the only thing written.
#[test]
fn a_restart_writes_the_difference() {
    let lab = Lab::with_pods(3);
    let first = lab.start();
    first.apply([service(json!({}))].into_iter().chain(endpoints(&[1, 2])).chain([Complete]));
    first.stop();
    let second = lab.start();
    second.apply([service(json!({}))].into_iter().chain(endpoints(&[2, 3])).chain([Complete]));
    assert_eq!(second.transactions(), 1);
    let listed = lab.nft_command("list map ip stoker endpoints");
    assert!(listed.contains("0 . 10.96.0.10 . tcp . 80 : 10.244.3.2 . 8080"), "the hole is filled: {listed}");
    assert!(listed.contains("1 . 10.96.0.10 . tcp . 80 : 10.244.2.2 . 8080"), "the other stays: {listed}");
}

/// A relist without the Service removes it, one that is under way does not.
#[test]
fn what_a_new_list_does_not_bring_goes() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    daemon.tell(Restarting);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(lab.served_by("client", VIP), "pod1");
    daemon.apply([Complete]);
    assert!(!lab.nft().contains("10.96.0.10"));
}

/// Another program flushes everything, or deletes one of our elements.
#[test]
fn foreign_changes_are_repaired() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    let before = lab.nft();
    lab.nft_command("flush ruleset");
    eventually("the flushed ruleset comes back", || lab.nft() == before);
    lab.nft_command("delete element ip stoker services-lb-1 { 10.96.0.10 . tcp . 80 }");
    eventually("the element comes back", || lab.nft() == before);
    lab.nft_command("flush chain ip stoker lb-1");
    lab.nft_command("delete chain ip stoker filter-input");
    eventually("flushed and deleted chains come back", || {
        let listed = lab.nft();
        listed.contains("hook input") && lab.connect("client", VIP).is_ok()
    });
    // The repair goes on for a moment after connections work: its elements are a transaction of their own.
    let mut written = daemon.transactions();
    eventually("the repair ends", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut written, daemon.transactions()) == written
    });
    lab.nft_command("add table ip somebody-else");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(daemon.transactions(), written, "tables of others are no reason to write");
}

/// B2.8: clean-up removes all, and is content when there is nothing.
#[test]
fn clean_up_leaves_nothing() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    daemon.stop();
    lab.cleanup();
    assert_eq!(lab.nft(), "");
    lab.cleanup();
}

/// A Service that is gone leaves no element.
#[test]
fn a_deleted_service_leaves_nothing() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    assert!(lab.nft().contains("10.96.0.10"));
    daemon.apply([ServiceGone(NamespacedName { namespace: "default".into(), name: "web".into() })]);
    let listed = lab.nft();
    assert!(!listed.contains("10.96.0.10") && !listed.contains("10.244.1.2"), "{listed}");
}
