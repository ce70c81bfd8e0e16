//! Columns of leases, certificates, runtime classes, admission and flow control (C4.22, C4.23, C4.28, C4.30–C4.32).

use serde_json::Value;

use super::access::{Plain, get, items, number, text};
use super::{AGE, Cells, HumanDuration, NAME, Printer, integer, string};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Lease" => &LEASE,
        "CertificateSigningRequest" => &SIGNING_REQUEST,
        "RuntimeClass" => &RUNTIME_CLASS,
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => &WEBHOOKS,
        "ValidatingAdmissionPolicy" => &VALIDATING_POLICY,
        "MutatingAdmissionPolicy" => &MUTATING_POLICY,
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => &POLICY_BINDING,
        "FlowSchema" => &FLOW_SCHEMA,
        "PriorityLevelConfiguration" => &PRIORITY_LEVEL,
        _ => return None,
    })
}

static LEASE: Printer = Printer::new(&[NAME, string("Holder"), AGE], |lease, now, cells| {
    cells.name(lease);
    cells.text(text(lease, &["spec", "holderIdentity"]));
    cells.age(lease, now);
});

static SIGNING_REQUEST: Printer = Printer::new(
    &[NAME, AGE, string("SignerName"), string("Requestor"), string("RequestedDuration"), string("Condition")],
    |request, now, cells| {
        cells.name(request);
        cells.age(request, now);
        cells.or_none(text(request, &["spec", "signerName"]));
        cells.text(text(request, &["spec", "username"]));
        match get(request, &["spec", "expirationSeconds"]).as_i64() {
            Some(seconds) => cells.display(HumanDuration(seconds)),
            None => cells.text("<none>"),
        }
        let has = |kind: &str| items(request, &["status", "conditions"]).iter().any(|c| text(c, &["type"]) == kind);
        let decision = if has("Denied") {
            "Denied"
        } else if has("Approved") {
            "Approved"
        } else {
            "Pending"
        };
        let failed = if has("Failed") { ",Failed" } else { "" };
        let issued = if text(request, &["status", "certificate"]).is_empty() { "" } else { ",Issued" };
        cells.display(format_args!("{decision}{failed}{issued}"));
    },
);

static RUNTIME_CLASS: Printer = Printer::new(&[NAME, string("Handler"), AGE], |class, now, cells| {
    cells.name(class);
    cells.text(text(class, &["handler"]));
    cells.age(class, now);
});

fn count(object: &Value, path: &[&str], cells: &mut Cells<'_>) {
    cells.integer(i64::try_from(items(object, path).len()).unwrap_or(i64::MAX));
}

static WEBHOOKS: Printer = Printer::new(&[NAME, integer("Webhooks"), AGE], |configuration, now, cells| {
    cells.name(configuration);
    count(configuration, &["webhooks"], cells);
    cells.age(configuration, now);
});

fn policy_row(policy: &Value, list: &str, cells: &mut Cells<'_>) {
    cells.name(policy);
    count(policy, &["spec", list], cells);
    let kind = get(policy, &["spec", "paramKind"]);
    if kind.is_null() {
        cells.text("<unset>");
    } else {
        cells.display(format_args!("{}/{}", text(kind, &["apiVersion"]), text(kind, &["kind"])));
    }
}

static VALIDATING_POLICY: Printer =
    Printer::new(&[NAME, integer("Validations"), string("ParamKind"), AGE], |policy, now, cells| {
        policy_row(policy, "validations", cells);
        cells.age(policy, now);
    });

static MUTATING_POLICY: Printer =
    Printer::new(&[NAME, integer("Mutations"), string("ParamKind"), AGE], |policy, now, cells| {
        policy_row(policy, "mutations", cells);
        cells.age(policy, now);
    });

static POLICY_BINDING: Printer =
    Printer::new(&[NAME, string("PolicyName"), string("ParamRef"), AGE], |binding, now, cells| {
        cells.name(binding);
        cells.text(text(binding, &["spec", "policyName"]));
        let param = get(binding, &["spec", "paramRef"]);
        match (text(param, &["namespace"]), text(param, &["name"])) {
            _ if param.is_null() => cells.text("<unset>"),
            ("", "") => cells.text("*"),
            ("", name) => cells.text(name),
            (namespace, name) => cells.display(format_args!("{namespace}/{name}")),
        }
        cells.age(binding, now);
    });

static FLOW_SCHEMA: Printer = Printer::new(
    &[
        NAME,
        string("PriorityLevel"),
        integer("MatchingPrecedence"),
        string("DistinguisherMethod"),
        AGE,
        string("MissingPL"),
    ],
    |schema, now, cells| {
        cells.name(schema);
        cells.text(text(schema, &["spec", "priorityLevelConfiguration", "name"]));
        cells.integer(number(schema, &["spec", "matchingPrecedence"]));
        cells.or_none(text(schema, &["spec", "distinguisherMethod", "type"]));
        cells.age(schema, now);
        let dangling = super::access::condition(schema, "Dangling");
        cells.text(if dangling.is_empty() { "?" } else { dangling });
    },
);

static PRIORITY_LEVEL: Printer = Printer::new(
    &[
        NAME,
        string("Type"),
        string("NominalConcurrencyShares"),
        string("Queues"),
        string("HandSize"),
        string("QueueLengthLimit"),
        AGE,
    ],
    |level, now, cells| {
        cells.name(level);
        cells.text(text(level, &["spec", "type"]));
        let limited = get(level, &["spec", "limited"]);
        let queuing = get(limited, &["limitResponse", "queuing"]);
        for value in [
            get(limited, &["nominalConcurrencyShares"]),
            get(queuing, &["queues"]),
            get(queuing, &["handSize"]),
            get(queuing, &["queueLengthLimit"]),
        ] {
            if value.is_null() {
                cells.text("<none>");
            } else {
                cells.display(Plain(value));
            }
        }
        cells.age(level, now);
    },
);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::check;

    #[test]
    fn signing_requests() {
        // C4.22
        let request = json!({"kind": "CertificateSigningRequest", "spec": {"signerName": "s", "username": "u", "expirationSeconds": 600},
            "status": {"conditions": [{"type": "Approved"}], "certificate": "eA=="}});
        check(
            "certificates.k8s.io",
            request,
            &[("RequestedDuration", json!("10m")), ("Condition", json!("Approved,Issued")), ("Requestor", json!("u"))],
        );
        check("certificates.k8s.io", json!({"kind": "CertificateSigningRequest"}), &[("Condition", json!("Pending"))]);
    }
}
