//! The phase of a pod (A2.1).

use k8s_openapi::api::core::v1::ContainerStatus;

use super::Facts;
use crate::pod::observed::Cause;
use crate::pod::policy::restarts_after;

pub(super) fn phase(
    facts: Facts<'_>,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    ended: bool,
) -> &'static str {
    // What was once terminal stays so (A2.2).
    match facts.previous.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    if ended && matches!(facts.seen.memory.stage.cause(), Some(Cause::Killed { .. })) {
        return "Failed";
    }
    match (by_containers(facts, init, regular, ended), ended) {
        // A pod that ends without having come so far has failed (A1.20).
        ("Pending" | "Running", true) => "Failed",
        (phase, _) => phase,
    }
}

fn by_containers(facts: Facts<'_>, init: &[ContainerStatus], regular: &[ContainerStatus], ended: bool) -> &'static str {
    let policy = facts.desired.restart_policy();
    let exit = |c: &ContainerStatus| c.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
    let last_exit = |c: &ContainerStatus| c.last_state.as_ref().and_then(|s| s.terminated.as_ref()).is_some();
    let runs = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.running.is_some());
    let started_any = regular.iter().any(|c| runs(c) || exit(c).is_some() || last_exit(c));

    let plain = init.iter().filter(|c| !facts.desired.is_sidecar(&c.name));
    let sidecars = init.iter().filter(|c| facts.desired.is_sidecar(&c.name));
    let plain_pending = plain.clone().any(|c| exit(c) != Some(0)) && !started_any;
    let again = |c: &ContainerStatus, code: i32| {
        let found = facts.desired.container(&c.name);
        facts.seen.memory.recreate.contains(&c.name) || found.is_some_and(|(_, c)| restarts_after(policy, &c, code))
    };
    let failed_for_good = |c: &ContainerStatus| exit(c).is_some_and(|code| code != 0 && !again(c, code));
    if plain.clone().any(failed_for_good) {
        return "Failed";
    }
    let sidecar_pending =
        sidecars.clone().any(|c| runs(c) && c.started != Some(true) || exit(c).is_none() && !runs(c) && !last_exit(c));
    if plain_pending || (sidecar_pending && !started_any) {
        return "Pending";
    }
    if regular.iter().any(|c| !runs(c) && exit(c).is_none() && !last_exit(c)) {
        return "Pending";
    }
    if regular.iter().any(runs) {
        return "Running";
    }
    let stopped = regular.iter().filter(|c| exit(c).is_some() || last_exit(c)).count();
    if stopped == 0 {
        return "Pending";
    }
    let succeeded = regular.iter().filter(|c| exit(c) == Some(0)).count();
    // One without an end of its own waits for its next start.
    let comes_back = |c: &ContainerStatus| exit(c).is_none_or(|code| again(c, code));
    if !ended && regular.iter().any(comes_back) {
        "Running"
    } else if stopped == succeeded {
        "Succeeded"
    } else {
        "Failed"
    }
}
