//! PodSecurity: what a namespace's labels let pods do, warn of, or refuse (C5.16).

use std::collections::BTreeMap;

use serde_json::Value;

use super::is;
use super::security_checks::{Fault, Level, check};
use crate::api::cluster::Core;
use crate::api::write::Writer;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::resources::{self, ResourceInfo};

const LABEL: &str = "pod-security.kubernetes.io";
/// A change of the level looks at so many pods that are there.
const MOST_PODS: usize = 3000;

/// A level at a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    level: Level,
    /// `None`: the newest.
    minor: Option<u32>,
}

const FREE: Rule = Rule { level: Level::Privileged, minor: None };

impl Rule {
    fn name(self) -> String {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        let version = self.minor.map_or_else(|| "latest".to_owned(), |minor| format!("v1.{minor}"));
        format!("{level}:{version}")
    }

    fn check(self, metadata: &Value, spec: &Value) -> Vec<Fault> {
        check(self.level, self.minor, metadata, spec)
    }
}

/// What a namespace's labels ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    enforce: Rule,
    warn: Rule,
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn parse_version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let canonical = minor == "0" || !minor.starts_with(['0', '+']);
    minor.parse().ok().filter(|_| canonical).map(Some)
}

/// The policy, and what is wrong with the labels. A wrong level enforces the strictest and warns of nothing.
fn policy(labels: &Value) -> (Policy, Vec<FieldError>) {
    let mut errors = Vec::new();
    let mut read = |mode: &str| {
        let mut rule = FREE;
        let key = format!("{LABEL}/{mode}");
        let mut known = false;
        if let Some(given) = labels[&key].as_str() {
            match parse_level(given) {
                Some(level) => (rule.level, known) = (level, true),
                None => {
                    rule.level = if mode == "enforce" { Level::Restricted } else { Level::Privileged };
                    let path = format!("metadata.labels[{key}]");
                    errors.push(FieldError::invalid(path, given, "must be one of privileged, baseline, restricted"));
                }
            }
        }
        let key = format!("{key}-version");
        let version = labels[&key].as_str();
        if let Some(given) = version {
            match parse_version(given) {
                Some(minor) => rule.minor = minor,
                None => {
                    let path = format!("metadata.labels[{key}]");
                    errors.push(FieldError::invalid(path, given, "must be \"latest\" or \"v1.x\""));
                }
            }
        }
        (rule, known, version.is_some())
    };
    let (enforce, enforced, _) = read("enforce");
    read("audit");
    let (mut warn, _, has_version) = read("warn");
    // Who enforces without a word about warnings is warned of the same.
    if labels[format!("{LABEL}/warn")].is_null() && enforced && enforce.level > warn.level {
        warn.level = enforce.level;
        if !has_version {
            warn.minor = enforce.minor;
        }
    }
    (Policy { enforce, warn }, errors)
}

fn describe(faults: &[Fault]) -> String {
    let texts: Vec<String> = faults
        .iter()
        .map(|fault| match fault.detail.as_str() {
            "" => fault.reason.clone(),
            detail => format!("{} ({detail})", fault.reason),
        })
        .collect();
    texts.join(", ")
}

/// Whether an update changes what runs.
fn is_significant(new: &Value, old: &Value) -> bool {
    let differs = |list: &str| {
        items(&new["spec"], list).count() != items(&old["spec"], list).count()
            || items(&new["spec"], list).zip(items(&old["spec"], list)).any(|(new, old)| new["image"] != old["image"])
    };
    ["containers", "initContainers", "ephemeralContainers"].into_iter().any(differs)
}

/// The template of a kind that has one.
fn template<'o>(info: &ResourceInfo, object: &'o Value) -> Option<&'o Value> {
    match (info.group, info.plural) {
        ("", "podtemplates") => Some(&object["template"]),
        ("batch", "cronjobs") => Some(&object["spec"]["jobTemplate"]["spec"]["template"]),
        ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets")
        | ("batch", "jobs")
        | ("", "replicationcontrollers") => Some(&object["spec"]["template"]).filter(|template| !template.is_null()),
        _ => None,
    }
}

/// Refuses a pod, warns of a template, looks at a namespace's labels.
pub(super) async fn validate(
    core: &Core,
    info: &'static ResourceInfo,
    subresource: &str,
    object: &Value,
    old: Option<&Value>,
    writer: &Writer,
) -> Result<(), StatusError> {
    if is(info, "", "namespaces") && subresource.is_empty() {
        return validate_namespace(core, info, object, old, writer).await;
    }
    let is_pod = is(info, "", "pods");
    let looked_at = if is_pod {
        matches!(subresource, "" | "ephemeralcontainers" | "resize")
            && old.is_none_or(|old| is_significant(object, old))
    } else {
        subresource.is_empty() && template(info, object).is_some()
    };
    if !looked_at {
        return Ok(());
    }
    let namespace = text(&object["metadata"], "namespace");
    let namespaces = resources::find("", "namespaces").expect("`resources::core` has namespaces");
    let Some(found) = core.find(namespaces, "", namespace).await? else { return Ok(()) };
    let (policy, _) = policy(&found["metadata"]["labels"]);
    let pod = if is_pod { object } else { template(info, object).unwrap_or(object) };
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    if is_pod {
        let faults = policy.enforce.check(metadata, spec);
        if !faults.is_empty() {
            let why = format!("violates PodSecurity {:?}: {}", policy.enforce.name(), describe(&faults));
            return Err(StatusError::forbidden(info, text(&object["metadata"], "name"), &why));
        }
    }
    let faults = policy.warn.check(metadata, spec);
    if !faults.is_empty() {
        writer.warn(format!("would violate PodSecurity {:?}: {}", policy.warn.name(), describe(&faults)));
    }
    Ok(())
}

async fn validate_namespace(
    core: &Core,
    info: &'static ResourceInfo,
    namespace: &Value,
    old: Option<&Value>,
    writer: &Writer,
) -> Result<(), StatusError> {
    let name = text(&namespace["metadata"], "name");
    let (now, errors) = policy(&namespace["metadata"]["labels"]);
    let before = old.map(|old| policy(&old["metadata"]["labels"]));
    if !errors.is_empty() && before.as_ref().is_none_or(|(_, known)| *known != errors) {
        return Err(StatusError::invalid(info, name, &errors));
    }
    let Some((before, _)) = before else { return Ok(()) };
    let (now, before) = (now.enforce, before.enforce);
    if now.level == Level::Privileged || now == before || (now.minor == before.minor && now.level <= before.level) {
        return Ok(());
    }
    let pods = resources::find("", "pods").expect("`resources::core` has pods");
    let pods = core.all(pods, name).await?;
    if pods.len() > MOST_PODS {
        writer.warn(format!(
            "new PodSecurity enforce level only checked against the first {MOST_PODS} of {} existing pods",
            pods.len()
        ));
    }
    for warning in existing(now, name, &pods) {
        writer.warn(warning);
    }
    Ok(())
}

/// Warnings about pods that are there; those with the same faults are one.
fn existing(rule: Rule, namespace: &str, pods: &[Value]) -> Vec<String> {
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in pods.iter().take(MOST_PODS) {
        let reasons: Vec<String> =
            rule.check(&pod["metadata"], &pod["spec"]).into_iter().map(|fault| fault.reason).collect();
        if reasons.is_empty() {
            continue;
        }
        let name = text(&pod["metadata"], "name").to_owned();
        let entry = found.entry(reasons.join(", ")).or_insert_with(|| (name.clone(), 0));
        entry.0 = name.min(entry.0.clone());
        entry.1 += 1;
    }
    if found.is_empty() {
        return Vec::new();
    }
    let mut warnings: Vec<String> = found
        .into_iter()
        .map(|(reasons, (name, count))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            many => format!("{name} (and {} other pods): {reasons}", many - 1),
        })
        .collect();
    warnings.sort();
    let head =
        format!("existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}", rule.name());
    std::iter::once(head).chain(warnings).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_make_a_policy() {
        // C5.16
        let of = |labels: Value| {
            let (policy, errors) = policy(&labels);
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            (policy.enforce.name(), policy.warn.name(), errors)
        };
        let key = |mode: &str| format!("{LABEL}/{mode}");
        let none = ("privileged:latest".to_owned(), "privileged:latest".to_owned(), vec![]);
        assert_eq!(of(Value::Null), none);
        let (enforce, warn, _) = of(json!({key("enforce"): "baseline", key("enforce-version"): "v1.24"}));
        assert_eq!((enforce.as_str(), warn.as_str()), ("baseline:v1.24", "baseline:v1.24"));
        let (_, warn, _) = of(json!({key("enforce"): "restricted", key("warn"): "baseline"}));
        assert_eq!(warn, "baseline:latest");
        let (enforce, warn, errors) = of(json!({key("enforce"): "strict", key("warn-version"): "1.2"}));
        assert_eq!((enforce.as_str(), warn.as_str()), ("restricted:latest", "privileged:latest"));
        assert_eq!(
            errors,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"1.2\": must be \"latest\" or \"v1.x\"",
            ]
        );
    }

    #[test]
    fn pods_with_the_same_faults_are_one_warning() {
        // C5.16
        let pod = |name: &str, network: bool| json!({"metadata": {"name": name}, "spec": {"hostNetwork": network}});
        let rule = Rule { level: Level::Baseline, minor: None };
        assert_eq!(
            existing(rule, "n", &[pod("b", true), pod("a", true), pod("c", false)]),
            [
                "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "a (and 1 other pod): host namespaces"
            ]
        );
        assert!(existing(rule, "n", &[pod("c", false)]).is_empty());
    }
}
