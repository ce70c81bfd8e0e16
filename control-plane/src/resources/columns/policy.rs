//! Columns of policy, autoscaling, scheduling and RBAC (C4.3, C4.19, C4.21, C4.27, C4.33).

use std::fmt;

use serde_json::Value;

use super::access::{Plain, flag, get, items, number, text};
use super::{AGE, Cells, NAME, Printer, column, integer, string, wide};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "PodDisruptionBudget" => &BUDGET,
        "HorizontalPodAutoscaler" => &AUTOSCALER,
        "Scale" => &SCALE,
        "PriorityClass" => &PRIORITY_CLASS,
        "RoleBinding" | "ClusterRoleBinding" => &BINDING,
        _ => return None,
    })
}

static BUDGET: Printer = Printer::new(
    &[NAME, string("Min Available"), string("Max Unavailable"), integer("Allowed Disruptions"), AGE],
    |budget, now, cells| {
        cells.name(budget);
        for field in ["minAvailable", "maxUnavailable"] {
            match get(budget, &["spec", field]) {
                Value::Null => cells.text("N/A"),
                value => cells.display(Plain(value)),
            }
        }
        cells.integer(number(budget, &["status", "disruptionsAllowed"]));
        cells.age(budget, now);
    },
);

static AUTOSCALER: Printer = Printer::new(
    &[NAME, string("Reference"), string("Targets"), string("MinPods"), string("MaxPods"), integer("Replicas"), AGE],
    |hpa, now, cells| {
        cells.name(hpa);
        let target = get(hpa, &["spec", "scaleTargetRef"]);
        cells.display(format_args!("{}/{}", text(target, &["kind"]), text(target, &["name"])));
        cells.display(Targets(hpa));
        match get(hpa, &["spec", "minReplicas"]) {
            Value::Null => cells.text("<unset>"),
            value => cells.display(Plain(value)),
        }
        cells.display(number(hpa, &["spec", "maxReplicas"]));
        cells.integer(number(hpa, &["status", "currentReplicas"]));
        cells.age(hpa, now);
    },
);

/// `cpu: 3%/80%`, from either version of the API.
struct Targets<'v>(&'v Value);

impl fmt::Display for Targets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(target) = get(self.0, &["spec", "targetCPUUtilizationPercentage"]).as_i64() {
            return match get(self.0, &["status", "currentCPUUtilizationPercentage"]).as_i64() {
                Some(current) => write!(f, "cpu: {current}%/{target}%"),
                None => write!(f, "cpu: <unknown>/{target}%"),
            };
        }
        let metrics = items(self.0, &["spec", "metrics"]);
        let current = items(self.0, &["status", "currentMetrics"]);
        if metrics.is_empty() {
            return f.write_str("<none>");
        }
        for (at, metric) in metrics.iter().enumerate().take(2) {
            let comma = if at > 0 { ", " } else { "" };
            let kind = text(metric, &["type"]);
            let field = match kind {
                "ContainerResource" => "containerResource".to_owned(),
                kind => kind.to_ascii_lowercase(),
            };
            let name = match text(metric, &[&field, "name"]) {
                "" => text(metric, &[&field, "metric", "name"]),
                name => name,
            };
            let target = get(metric, &[&field, "target"]);
            let now = current.get(at).map_or(&Value::Null, |current| get(current, &[&field, "current"]));
            write!(f, "{comma}")?;
            if matches!(kind, "Resource" | "ContainerResource") {
                write!(f, "{name}: ")?;
            }
            match get(target, &["averageUtilization"]).as_i64() {
                Some(target) => match get(now, &["averageUtilization"]).as_i64() {
                    Some(now) => write!(f, "{now}%/{target}%")?,
                    None => write!(f, "<unknown>/{target}%")?,
                },
                None => {
                    let which = if get(target, &["averageValue"]).is_null() { "value" } else { "averageValue" };
                    match get(now, &[which]) {
                        Value::Null => f.write_str("<unknown>")?,
                        value => Plain(value).fmt(f)?,
                    }
                    write!(f, "/{}", Plain(get(target, &[which])))?;
                }
            }
        }
        if metrics.len() > 2 {
            write!(f, " + {} more...", metrics.len() - 2)?;
        }
        Ok(())
    }
}

static SCALE: Printer = Printer::new(&[NAME, integer("Desired"), integer("Available"), AGE], |scale, now, cells| {
    cells.name(scale);
    cells.integer(number(scale, &["spec", "replicas"]));
    cells.integer(number(scale, &["status", "replicas"]));
    cells.age(scale, now);
});

static PRIORITY_CLASS: Printer = Printer::new(
    &[NAME, integer("Value"), column("Global-Default", "boolean"), AGE, string("PreemptionPolicy")],
    |class, now, cells| {
        cells.name(class);
        cells.integer(number(class, &["value"]));
        cells.boolean(flag(class, &["globalDefault"]));
        cells.age(class, now);
        cells.text(text(class, &["preemptionPolicy"]));
    },
);

static BINDING: Printer = Printer::new(
    &[NAME, string("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")],
    |binding, now, cells| {
        cells.name(binding);
        cells.display(format_args!("{}/{}", text(binding, &["roleRef", "kind"]), text(binding, &["roleRef", "name"])));
        cells.age(binding, now);
        for kind in ["User", "Group", "ServiceAccount"] {
            subjects(binding, kind, cells);
        }
    },
);

fn subjects(binding: &Value, kind: &str, cells: &mut Cells<'_>) {
    let names: Vec<String> = items(binding, &["subjects"])
        .iter()
        .filter(|subject| text(subject, &["kind"]) == kind)
        .map(|subject| match text(subject, &["namespace"]) {
            namespace if kind == "ServiceAccount" => format!("{namespace}/{}", text(subject, &["name"])),
            _ => text(subject, &["name"]).to_owned(),
        })
        .collect();
    cells.text(&names.join(", "));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::check;

    #[test]
    fn autoscalers_of_both_versions() {
        // C4.19
        let v1 = json!({"kind": "HorizontalPodAutoscaler", "spec": {"targetCPUUtilizationPercentage": 80, "maxReplicas": 5}, "status": {"currentCPUUtilizationPercentage": 3}});
        check(
            "autoscaling",
            v1,
            &[("Targets", json!("cpu: 3%/80%")), ("MinPods", json!("<unset>")), ("MaxPods", json!("5"))],
        );
        let v2 = json!({"kind": "HorizontalPodAutoscaler", "spec": {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}});
        check("autoscaling", v2, &[("Targets", json!("cpu: <unknown>/80%"))]);
    }

    #[test]
    fn budgets_and_bindings() {
        // C4.3, C4.21
        check(
            "policy",
            json!({"kind": "PodDisruptionBudget", "spec": {"minAvailable": "50%"}}),
            &[("Min Available", json!("50%")), ("Max Unavailable", json!("N/A"))],
        );
        let binding = json!({"kind": "RoleBinding", "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        check(
            "rbac.authorization.k8s.io",
            binding,
            &[("Role", json!("Role/r")), ("Users", json!("u, v")), ("ServiceAccounts", json!("n/s"))],
        );
    }
}
