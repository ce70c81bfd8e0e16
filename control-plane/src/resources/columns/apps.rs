//! Columns of apps (C4.4–C4.7, C4.25).

use serde_json::Value;

use super::access::{Labels, Selector, get, items, map, number, text};
use super::{AGE, Cells, NAME, Printer, integer, selector_cell, string, template_cells, wide};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Deployment" => &DEPLOYMENT,
        "ReplicaSet" => &REPLICAS,
        "StatefulSet" => &STATEFUL_SET,
        "DaemonSet" => &DAEMON_SET,
        "ControllerRevision" => &REVISION,
        _ => return None,
    })
}

/// Of ReplicaSets and ReplicationControllers, whose selector is a plain map.
pub(super) static REPLICAS: Printer = Printer::new(
    &[
        NAME,
        integer("Desired"),
        integer("Current"),
        integer("Ready"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |set, now, cells| {
        cells.name(set);
        cells.integer(number(set, &["spec", "replicas"]));
        cells.integer(number(set, &["status", "replicas"]));
        cells.integer(number(set, &["status", "readyReplicas"]));
        cells.age(set, now);
        template_cells(set, cells);
        selector_cell(set, cells);
    },
);

fn ready_of_desired(object: &Value, cells: &mut Cells<'_>) {
    let (ready, desired) = (number(object, &["status", "readyReplicas"]), number(object, &["spec", "replicas"]));
    cells.display(format_args!("{ready}/{desired}"));
}

static DEPLOYMENT: Printer = Printer::new(
    &[
        NAME,
        string("Ready"),
        integer("Up-to-date"),
        integer("Available"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |deployment, now, cells| {
        cells.name(deployment);
        ready_of_desired(deployment, cells);
        cells.integer(number(deployment, &["status", "updatedReplicas"]));
        cells.integer(number(deployment, &["status", "availableReplicas"]));
        cells.age(deployment, now);
        template_cells(deployment, cells);
        cells.display(Selector(get(deployment, &["spec", "selector"])));
    },
);

static STATEFUL_SET: Printer =
    Printer::new(&[NAME, string("Ready"), AGE, wide("Containers"), wide("Images")], |set, now, cells| {
        cells.name(set);
        ready_of_desired(set, cells);
        cells.age(set, now);
        template_cells(set, cells);
    });

static DAEMON_SET: Printer = Printer::new(
    &[
        NAME,
        integer("Desired"),
        integer("Current"),
        integer("Ready"),
        integer("Up-to-date"),
        integer("Available"),
        string("Node Selector"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |set, now, cells| {
        cells.name(set);
        for field in [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ] {
            cells.integer(number(set, &["status", field]));
        }
        cells.display(Labels(map(set, &["spec", "template", "spec", "nodeSelector"])));
        cells.age(set, now);
        template_cells(set, cells);
        selector_cell(set, cells);
    },
);

static REVISION: Printer =
    Printer::new(&[NAME, string("Controller"), integer("Revision"), AGE], |revision, now, cells| {
        cells.name(revision);
        let owners = items(revision, &["metadata", "ownerReferences"]);
        match owners.iter().find(|owner| get(owner, &["controller"]) == true) {
            None => cells.text("<none>"),
            Some(owner) => {
                let kind = text(owner, &["kind"]).to_ascii_lowercase();
                let name = text(owner, &["name"]);
                match text(owner, &["apiVersion"]).split_once('/') {
                    Some((group, _)) => cells.display(format_args!("{kind}.{group}/{name}")),
                    None => cells.display(format_args!("{kind}/{name}")),
                }
            }
        }
        cells.integer(number(revision, &["revision"]));
        cells.age(revision, now);
    });

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::check;

    #[test]
    fn deployments() {
        // C4.6
        let deployment = json!({"kind": "Deployment", "metadata": {"name": "d", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "d"}, "matchExpressions": [{"key": "t", "operator": "In", "values": ["a", "b"]}]},
                "template": {"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j:2"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}});
        check(
            "apps",
            deployment,
            &[
                ("Ready", json!("2/3")),
                ("Up-to-date", json!(3)),
                ("Available", json!(1)),
                ("Age", json!("10m")),
                ("Containers", json!("a,b")),
                ("Images", json!("i:1,j:2")),
                ("Selector", json!("app=d,t in (a,b)")),
            ],
        );
    }

    #[test]
    fn replica_sets_and_daemon_sets() {
        // C4.4, C4.5
        let set = json!({"kind": "ReplicaSet", "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        check(
            "apps",
            set,
            &[("Desired", json!(2)), ("Current", json!(1)), ("Ready", json!(0)), ("Selector", json!("a=b"))],
        );
        check(
            "",
            json!({"kind": "ReplicationController", "spec": {"selector": {"a": "b"}}}),
            &[("Selector", json!("a=b"))],
        );
        let set = json!({"kind": "DaemonSet", "status": {"desiredNumberScheduled": 4, "numberAvailable": 2}});
        check("apps", set, &[("Desired", json!(4)), ("Available", json!(2)), ("Node Selector", json!("<none>"))]);
    }
}
