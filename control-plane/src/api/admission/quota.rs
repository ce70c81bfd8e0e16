//! ResourceQuota: an object is only made or made larger if every quota that it counts in has room for it, and is
//! counted at once, so that two writers cannot share the last place (C5.11, C5.18).

use serde_json::{Value, json};
use stoker_model::quantity::Milli;

use crate::api::cluster::Core;
use crate::api::{codec, read};
use crate::clock;
use crate::resources::quantities::{self, Amounts, amounts};
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, text};
use crate::resources::{self, ResourceInfo, quota};
use crate::storage::Guard;

/// How often a quota that others write is tried again.
const TRIES: usize = 16;

/// What was counted for a write, to be given back if the write fails.
#[derive(Debug, Default)]
pub(in crate::api) struct Charge {
    namespace: String,
    taken: Vec<(String, Amounts)>,
}

fn kind() -> &'static ResourceInfo {
    resources::find("", "resourcequotas").expect("`resources::core` has resourcequotas")
}

/// Which writes count: new objects, and those that can grow.
fn is_counted(info: &ResourceInfo, subresource: &str, object: &Value, old: Option<&Value>) -> bool {
    if !quota::counts(info) {
        return false;
    }
    let Some(old) = old else { return subresource.is_empty() };
    match (info.group, info.plural, subresource) {
        ("", "pods", "resize") | ("", "services" | "persistentvolumeclaims", "") => true,
        ("", "pods", "") => {
            let ends = |pod: &Value| pod["spec"]["activeDeadlineSeconds"].is_i64();
            ends(object) != ends(old)
        }
        _ => false,
    }
}

/// Counts an object in all quotas of its namespace that are about it, or says which has no room.
pub(in crate::api) async fn charge(
    core: &Core,
    info: &'static ResourceInfo,
    subresource: &str,
    object: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Charge, StatusError> {
    let namespace = text(&object["metadata"], "namespace").to_owned();
    let mut charge = Charge { namespace, taken: Vec::new() };
    if !is_counted(info, subresource, object, old) {
        return Ok(charge);
    }
    let quotas = core.all(kind(), &charge.namespace).await?;
    if quotas.is_empty() {
        return Ok(charge);
    }
    let now = clock::now();
    let used = quota::usage(info, object, now);
    let before = old.map(|old| quota::usage(info, old, now));
    let mut wanted = Vec::new();
    for found in &quotas {
        let hard = &found["status"]["hard"];
        let limited = quota::limited(found, hard, info, object);
        if limited.is_empty() {
            continue;
        }
        let refuse = |why: &str| StatusError::forbidden(info, text(&object["metadata"], "name"), why);
        let name = text(&found["metadata"], "name");
        if let Some(complaint) = quota::unspecified(info, &limited, object) {
            return Err(refuse(&format!("failed quota: {name}: {complaint}")));
        }
        if limited.iter().any(|resource| found["status"]["used"][*resource].is_null()) {
            let why = format!("status unknown for quota: {name}, resources: {}", limited.join(","));
            return Err(refuse(&why));
        }
        let counted = old.is_some_and(|old| !quota::limited(found, hard, info, old).is_empty());
        let mut more = used.clone();
        more.retain(|resource, amount| {
            if let Some(before) = before.as_ref().filter(|_| counted) {
                *amount = *amount - before.get(resource).copied().unwrap_or_default();
            }
            *amount > Milli::ZERO && !hard[resource.as_str()].is_null()
        });
        if more.is_empty() {
            continue;
        }
        exceeded(found, &more).map_or(Ok(()), |why| Err(refuse(&why)))?;
        wanted.push((name.to_owned(), more));
    }
    if dry_run {
        return Ok(charge);
    }
    for (name, more) in wanted {
        match core.count(&charge.namespace, &name, &more, true).await {
            Ok(None) => charge.taken.push((name, more)),
            Ok(Some(why)) => {
                let refused = StatusError::forbidden(info, text(&object["metadata"], "name"), &why);
                refund(core, charge).await;
                return Err(refused);
            }
            Err(error) => {
                refund(core, charge).await;
                return Err(error);
            }
        }
    }
    Ok(charge)
}

/// The write failed: what was counted is free again. The quota controller would find that out, too, but later.
pub(in crate::api) async fn refund(core: &Core, charge: Charge) {
    for (name, more) in charge.taken {
        let _ = core.count(&charge.namespace, &name, &more, false).await;
    }
}

/// Why there is no room, in upstream's words.
fn exceeded(found: &Value, more: &Amounts) -> Option<String> {
    let (hard, used) = (&found["status"]["hard"], &found["status"]["used"]);
    let (limits, taken) = (amounts(hard), amounts(used));
    let held = |resource: &str| taken.get(resource).copied().unwrap_or_default();
    let over: Amounts = more
        .iter()
        .filter(|(resource, amount)| {
            limits.get(resource.as_str()).is_some_and(|limit| held(resource) + **amount > *limit)
        })
        .map(|(resource, amount)| (resource.clone(), *amount))
        .collect();
    if over.is_empty() {
        return None;
    }
    let list = |values: &Value| -> String {
        let texts: Vec<String> = over
            .keys()
            .map(|resource| format!("{resource}={}", values[resource.as_str()].as_str().unwrap_or("0")))
            .collect();
        texts.join(",")
    };
    let requested = quantities::to_list(&over, &[hard]);
    Some(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        text(&found["metadata"], "name"),
        list(&requested),
        list(used),
        list(hard)
    ))
}

impl Core {
    /// Adds to what a quota counts, or takes away; answers why there is no room.
    async fn count(
        &self,
        namespace: &str,
        name: &str,
        more: &Amounts,
        add: bool,
    ) -> Result<Option<String>, StatusError> {
        let info = kind();
        for _ in 0..TRIES {
            let entry = match read::get(self.store.as_ref(), info, namespace, name).await {
                // A quota that is gone limits nothing.
                Err(error) if error.is_not_found() => return Ok(None),
                entry => entry?,
            };
            let mut found = codec::decode_entry(&entry)?;
            if add && let Some(why) = exceeded(&found, more) {
                return Ok(Some(why));
            }
            let mut used = amounts(&found["status"]["used"]);
            for (resource, amount) in more {
                let held = used.entry(resource.clone()).or_default();
                *held = if add { *held + *amount } else { (*held - *amount).max(Milli::ZERO) };
            }
            let shown = quantities::to_list(&used, &[&found["status"]["used"], &found["status"]["hard"]]);
            fill(&mut found, "status", json!({}));
            found["status"]["used"] = shown;
            let key = codec::key(info, namespace, name);
            match self.put(info, key, name, found, Guard::Unchanged(entry.revision), false).await {
                Err(error) if error.is_conflict() && error.details.is_none() => {}
                Err(error) if error.is_not_found() => return Ok(None),
                result => return result.map(|_| None),
            }
        }
        Err(StatusError::stale(info, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_quota_says_what_is_full() {
        // C5.11
        let found = json!({"metadata": {"name": "q"}, "status": {
            "hard": {"pods": "5", "requests.memory": "1Gi"}, "used": {"pods": "5", "requests.memory": "512Mi"}}});
        let more = Amounts::from([
            ("pods".to_owned(), Milli::from_units(1)),
            ("requests.memory".to_owned(), Milli::parse("256Mi").unwrap()),
        ]);
        assert_eq!(
            exceeded(&found, &more).as_deref(),
            Some("exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5")
        );
        let more = Amounts::from([("requests.memory".to_owned(), Milli::parse("768Mi").unwrap())]);
        assert_eq!(
            exceeded(&found, &more).as_deref(),
            Some(
                "exceeded quota: q, requested: requests.memory=768Mi, used: requests.memory=512Mi, limited: requests.memory=1Gi"
            )
        );
        let more = Amounts::from([("requests.memory".to_owned(), Milli::parse("512Mi").unwrap())]);
        assert_eq!(exceeded(&found, &more), None);
    }
}
