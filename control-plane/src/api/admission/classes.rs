//! What objects get or are refused for because of the class that they name: RuntimeClass, PriorityClass, StorageClass,
//! IngressClass (C5.6, C5.11).

use serde_json::{Value, json};

use super::is;
use crate::api::cluster::Core;
use crate::resources::quantities::{amounts, parse};
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, is_set, items, text};
use crate::resources::{self, ResourceInfo};

const DEFAULT_STORAGE: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const DEFAULT_INGRESS: &str = "ingressclass.kubernetes.io/is-default-class";
const OLD_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const OLD_INGRESS_CLASS: &str = "kubernetes.io/ingress.class";

/// The overhead and the place of a new pod are those of its runtime class.
pub(super) async fn runtime(core: &Core, info: &ResourceInfo, pod: &mut Value) -> Result<(), StatusError> {
    let pod_name = text(&pod["metadata"], "name").to_owned();
    let refuse = |why: String| Err(StatusError::forbidden(info, &pod_name, &why));
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().map(str::to_owned) else {
        if is_set(&pod["spec"], "overhead") {
            return refuse("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
        }
        return Ok(());
    };
    let classes = resources::find("node.k8s.io", "runtimeclasses").expect("`resources::node` has runtimeclasses");
    let Some(class) = core.find(classes, "", &name).await? else {
        return refuse(format!("pod rejected: RuntimeClass {name:?} not found"));
    };
    let spec = &mut pod["spec"];
    let (fixed, given) = (&class["overhead"]["podFixed"], &spec["overhead"]);
    if is_set(&class, "overhead") {
        let empty = given.as_object().is_none_or(|amounts| amounts.is_empty());
        if !empty && amounts(given) != amounts(fixed) {
            return refuse("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        if !fixed.is_null() {
            spec["overhead"] = fixed.clone();
        }
    } else if is_set(spec, "overhead") {
        return refuse("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        fill(spec, "nodeSelector", json!({}));
        let own = &spec["nodeSelector"][key];
        if !own.is_null() && own != value {
            return refuse(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                own.as_str().unwrap_or_default()
            ));
        }
        spec["nodeSelector"][key] = value.clone();
    }
    for toleration in items(&class["scheduling"], "tolerations") {
        if items(spec, "tolerations").any(|own| own == toleration) {
            continue;
        }
        fill(spec, "tolerations", json!([]));
        if let Some(list) = spec["tolerations"].as_array_mut() {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

/// A pod's priority is that of its class, or of the default one.
pub(super) async fn priority(core: &Core, info: &'static ResourceInfo, pod: &mut Value) -> Result<(), StatusError> {
    let classes = priority_classes();
    let class = text(&pod["spec"], "priorityClassName").to_owned();
    let pod_name = text(&pod["metadata"], "name").to_owned();
    let found = match class.as_str() {
        "" => default_priority(core).await?,
        // The system's own classes are there before anything is stored.
        "system-node-critical" => Some(json!({"metadata": {"name": class}, "value": 2_000_001_000})),
        "system-cluster-critical" => Some(json!({"metadata": {"name": class}, "value": 2_000_000_000})),
        name => Some(core.find(classes, "", name).await?.ok_or_else(|| {
            StatusError::forbidden(info, &pod_name, &format!("no PriorityClass with name {name} was found"))
        })?),
    };
    let spec = &mut pod["spec"];
    let (name, value, policy) = found.as_ref().map_or(("", 0, "PreemptLowerPriority"), |found| {
        let policy = found["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
        (text(&found["metadata"], "name"), found["value"].as_i64().unwrap_or(0), policy)
    });
    if spec["priority"].as_i64().is_some_and(|asked| asked != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            spec["priority"]
        );
        return Err(StatusError::forbidden(info, &pod_name, &why));
    }
    if let Some(asked) = spec["preemptionPolicy"].as_str().filter(|asked| *asked != policy) {
        let why = format!(
            "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(StatusError::forbidden(info, &pod_name, &why));
    }
    if !name.is_empty() {
        spec["priorityClassName"] = json!(name);
    }
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = json!(policy);
    Ok(())
}

fn priority_classes() -> &'static ResourceInfo {
    resources::find("scheduling.k8s.io", "priorityclasses").expect("`resources::scheduling` has it")
}

async fn default_priority(core: &Core) -> Result<Option<Value>, StatusError> {
    let classes = core.all(priority_classes(), "").await?.into_iter().filter(|class| class["globalDefault"] == true);
    Ok(classes.min_by_key(|class| class["value"].as_i64().unwrap_or(0)))
}

/// There is one default priority.
pub(super) async fn one_default(core: &Core, info: &ResourceInfo, class: &Value) -> Result<(), StatusError> {
    let name = text(&class["metadata"], "name");
    if !is(info, "scheduling.k8s.io", "priorityclasses") || class["globalDefault"] != true {
        return Ok(());
    }
    match default_priority(core).await? {
        Some(other) if other["metadata"]["name"] != name => {
            let other = text(&other["metadata"], "name");
            let why = format!("PriorityClass {other} is already marked as default. Only one default can exist");
            Err(StatusError::forbidden(info, name, &why))
        }
        _ => Ok(()),
    }
}

/// Of several defaults the newest, and of those the first by name.
fn newest(classes: Vec<Value>, is_default: impl Fn(&Value) -> bool) -> Option<Value> {
    let mut defaults: Vec<Value> = classes.into_iter().filter(|class| is_default(class)).collect();
    defaults.sort_by(|a, b| {
        let made = |class: &Value| text(&class["metadata"], "creationTimestamp").to_owned();
        let name = |class: &Value| text(&class["metadata"], "name").to_owned();
        made(b).cmp(&made(a)).then_with(|| name(a).cmp(&name(b)))
    });
    defaults.into_iter().next()
}

/// A claim without a class gets the default one.
pub(super) async fn default_storage(core: &Core, claim: &mut Value) -> Result<(), StatusError> {
    if is_set(&claim["spec"], "storageClassName") || is_set(&claim["metadata"]["annotations"], OLD_STORAGE_CLASS) {
        return Ok(());
    }
    let classes = resources::find("storage.k8s.io", "storageclasses").expect("`resources::storage` has it");
    let is_default = |class: &Value| DEFAULT_STORAGE.iter().any(|key| class["metadata"]["annotations"][*key] == "true");
    if let Some(class) = newest(core.all(classes, "").await?, is_default) {
        claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

/// An Ingress without a class gets the default one.
pub(super) async fn default_ingress(core: &Core, ingress: &mut Value) -> Result<(), StatusError> {
    if is_set(&ingress["spec"], "ingressClassName") || is_set(&ingress["metadata"]["annotations"], OLD_INGRESS_CLASS) {
        return Ok(());
    }
    let classes = resources::find("networking.k8s.io", "ingressclasses").expect("`resources::networking` has it");
    let is_default = |class: &Value| class["metadata"]["annotations"][DEFAULT_INGRESS] == "true";
    let classes = core.all(classes, "").await?;
    if let Some(class) = newest(classes, is_default) {
        fill(ingress, "spec", json!({}));
        ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

/// A claim grows only where its class says that it can.
pub(super) async fn resize(core: &Core, info: &ResourceInfo, claim: &Value, old: &Value) -> Result<(), StatusError> {
    let size = |claim: &Value| parse(&claim["spec"]["resources"]["requests"]["storage"]);
    if size(claim) <= size(old) {
        return Ok(());
    }
    let refuse = |why: &str| Err(StatusError::forbidden(info, text(&claim["metadata"], "name"), why));
    if old["status"]["phase"] != "Bound" {
        return refuse("Only bound persistent volume claims can be expanded");
    }
    let classes = resources::find("storage.k8s.io", "storageclasses").expect("`resources::storage` has it");
    let name = text(&old["spec"], "storageClassName");
    let class = if name.is_empty() { None } else { core.find(classes, "", name).await? };
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    refuse(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
}
