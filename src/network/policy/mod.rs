//! NetworkPolicy: policies, pods and namespaces to the nftables table `inet stoker-policy`.
//!
//! [`model`] decides purely what the table holds, [`script`] writes the difference between two such states as one nft
//! transaction; this file holds the one task that owns the table.

use std::collections::BTreeSet;
use std::time::Duration;

use stoker_model::network::{Listed, PolicyChange};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::monitor::{Monitor, SETTLE};
use super::table::run_nft;

mod model;
mod ranges;
mod script;

use model::{Change, Compiled, Desired, World};
pub(super) use script::TABLE;

/// Changes taken in before the kernel is written.
const CHANGES_AT_ONCE: usize = 10_000;
/// The table is looked for so often, in case that somebody flushed it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Owner {
    node: String,
    world: World,
    compiled: Compiled,
    /// What the compiled policies do not know yet.
    changes: Vec<Change>,
    policies_listed: bool,
    pods_listed: bool,
    namespaces_listed: bool,
    /// What the kernel has; `None` when that is not known.
    written: Option<Desired>,
    problems: BTreeSet<String>,
}

/// Enforces policies for the pods of `node` until nobody sends any more. The table stays.
///
/// Nothing is written before all lists that matter are complete, so that a restart opens nothing that was closed.
pub async fn run(node: String, mut changes: mpsc::Receiver<PolicyChange>) {
    let mut owner = Owner { node, ..Owner::default() };
    let mut wait = LOOK_AGAIN;
    // Changes do not put it off: a cluster of many pods always changes.
    let mut timer = std::pin::pin!(tokio::time::sleep(wait));
    let monitor = Monitor::open(TABLE);
    if let Err(error) = &monitor {
        warn!(%error, "what others change in the table of network policies will be noticed late");
    }
    loop {
        let mut look = false;
        let heard = async {
            match &monitor {
                Ok(monitor) => monitor.heard_table().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.recv() => match change {
                None => return,
                Some(change) => {
                    let mut dirty = owner.take(change);
                    for _ in 0..CHANGES_AT_ONCE {
                        let Ok(change) = changes.try_recv() else { break };
                        dirty |= owner.take(change);
                    }
                    if !dirty && owner.written.is_some() {
                        continue;
                    }
                }
            },
            () = heard => {
                info!("somebody else changed the table of network policies: loading it again");
                tokio::time::sleep(SETTLE).await;
                owner.written = None;
            }
            () = &mut timer => look = true,
        }
        if !owner.may_write() {
            if look {
                timer.set(tokio::time::sleep(wait));
            }
            continue;
        }
        let before = wait;
        wait = match owner.synchronise(look).await {
            Ok(()) => LOOK_AGAIN,
            Err(error) => {
                let next = if wait == LOOK_AGAIN { FIRST_RETRY } else { (wait * 2).min(LOOK_AGAIN / 2) };
                warn!(error, ?next, "network policies are not enforced as they should be; trying again");
                next
            }
        };
        if look || wait != before {
            timer.set(tokio::time::sleep(wait));
        }
    }
}

impl Owner {
    fn may_write(&self) -> bool {
        self.policies_listed && (self.world.policies.is_empty() || self.pods_listed && self.namespaces_listed)
    }

    /// Takes in a change; whether it can matter.
    fn take(&mut self, change: PolicyChange) -> bool {
        let world = &mut self.world;
        let change = match change {
            PolicyChange::Policy(Listed::Present(mut policy)) => {
                policy.metadata.resource_version.clear();
                let key = policy.metadata.key();
                world.policies.insert(key.clone(), policy);
                Some(Change::Policy(key))
            }
            PolicyChange::Policy(Listed::Gone(key)) => world.policies.remove(&key).map(|_| Change::Policy(key)),
            PolicyChange::Pod(Listed::Present(pod)) => world.put_pod(pod),
            PolicyChange::Pod(Listed::Gone(key)) => world.remove_pod(&key),
            PolicyChange::Namespace(Listed::Present(namespace)) => {
                let labels = namespace.metadata.labels;
                let old = world.namespaces.insert(namespace.metadata.name, labels.clone());
                (old.as_ref() != Some(&labels)).then_some(Change::Namespace)
            }
            PolicyChange::Namespace(Listed::Gone(key)) => world.namespaces.remove(&key.name).map(|_| Change::Namespace),
            PolicyChange::Policy(Listed::Complete) => return !std::mem::replace(&mut self.policies_listed, true),
            PolicyChange::Pod(Listed::Complete) => return !std::mem::replace(&mut self.pods_listed, true),
            PolicyChange::Namespace(Listed::Complete) => {
                return !std::mem::replace(&mut self.namespaces_listed, true);
            }
        };
        let matters = change.is_some();
        // What was never compiled looks at everything when it is.
        if !self.compiled.is_empty() {
            self.changes.extend(change);
        }
        matters
    }

    async fn synchronise(&mut self, look: bool) -> Result<(), String> {
        let mut changes = std::mem::take(&mut self.changes);
        if self.compiled.is_empty() {
            changes.extend(self.world.policies.keys().cloned().map(Change::Policy));
        }
        self.compiled.refresh(&self.world, &self.node, &changes);
        let (desired, problems) = self.compiled.desired(&self.world);
        for problem in problems.difference(&self.problems) {
            warn!(problem, "a part of a network policy is not understood and lets nothing pass");
        }
        self.problems = problems;
        let lost = look
            && self.written.as_ref().is_some_and(|written| !written.ingress.is_empty() || !written.egress.is_empty());
        let mut text = match &self.written {
            Some(written) => script::difference(written, &desired),
            None => script::whole(&desired),
        };
        let whole = if lost { script::whole(&desired) } else { String::new() };
        let known = self.written.take().is_some();
        let result = tokio::task::spawn_blocking(move || {
            // Asking costs little, and only nodes with isolated pods ask.
            if known && lost && run_nft(script::PROBE).is_err() {
                info!("the table of network policies is gone: loading it again");
                text = whole;
            }
            if text.is_empty() { Ok(0) } else { run_nft(&text).map(|()| text.lines().count()) }
        })
        .await
        .map_err(|error| error.to_string())?;
        let lines = result.map_err(|error| error.to_string())?;
        if lines > 0 {
            debug!(lines, pods = desired.ingress.len().max(desired.egress.len()), "network policies written");
        }
        self.written = Some(desired);
        Ok(())
    }
}
