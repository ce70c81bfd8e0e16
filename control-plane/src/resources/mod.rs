//! The kinds that this API server serves: one file per API group, a table in each.
//!
//! [`ResourceInfo`] is one row: names, scope, verbs, sub-resources, selectable fields and the [`Strategy`] (defaulting,
//! validation, what an update may change). Everything else in the control plane asks [`find`], [`by_kind`] or [`all`].
//! Not here: storage, HTTP, anything that needs a second object (that is admission, in `api`).

mod apps;
mod authentication;
mod authorization;
mod autoscaling;
mod batch;
pub mod certificates;
pub mod columns;
mod coordination;
mod core;
mod discovery;
mod events;
pub mod field;
mod flowcontrol;
pub mod format;
pub mod ip_families;
mod limits;
mod network_policy;
mod networking;
mod node;
mod object;
mod pod;
pub(crate) mod pod_changes;
mod pod_defaults;
mod pod_rules;
mod policy;
pub mod quantities;
pub mod quota;
mod rbac;
mod scheduling;
mod selector_rules;
pub(crate) mod service;
mod service_cidr;
pub mod signing_request;
pub mod status;
mod storage;
pub mod tree;
pub mod volume_match;
mod volume_rules;
mod volume_sources;
mod workload;
mod workload_rules;

use serde_json::Value;

use self::field::FieldError;
pub(crate) use self::pod_rules::{pod_limits, pod_requests};

/// All verbs of a kind with nothing special.
pub const CRUD: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One kind.
#[derive(Debug, Clone, Copy)]
pub struct ResourceInfo {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// In the order of discovery.
    pub verbs: &'static [&'static str],
    /// Paths below an object.
    pub subresources: &'static [Subresource],
    /// What `fieldSelector` may use besides `metadata.name` and `metadata.namespace` (C3.8).
    pub fields: &'static [SelectableField],
    /// Group and plural under which it is stored, where that is not its own (`events.k8s.io`); with another version
    /// of its own group they are the same.
    pub stored_as: (&'static str, &'static str),
    /// How it shows what is stored as another kind.
    pub view: Option<View>,
    /// Its rules.
    pub strategy: Strategy,
}

/// Another kind's objects under other field names.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// From the stored kind to this one.
    pub show: fn(Value) -> Value,
    /// From this kind to the stored one.
    pub store: fn(Value) -> Value,
}

/// A path below an object.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// `status`.
    pub name: &'static str,
    /// Group, version and kind of the body, where they are not the resource's own.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    /// Verbs.
    pub verbs: &'static [&'static str],
}

/// A field that `fieldSelector` may use.
#[derive(Debug, Clone, Copy)]
pub struct SelectableField {
    /// As written in the selector.
    pub name: &'static str,
    /// Its place in the object, without the leading dot.
    pub path: &'static str,
    /// What an absent field is taken for.
    pub absent: &'static str,
}

/// The rules of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Strategy {
    /// Reads the object as its type and writes it back: unknown fields go, wrong types are errors (400).
    pub normalise: fn(Value) -> Result<Value, serde_json::Error>,
    /// Fills in what was left out (C3.23).
    pub default: fn(&mut Value),
    /// What is wrong with a new object.
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// What is wrong with a change, besides what [`Self::validate`] finds: new, old.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Last touches to a new object before validation (`status.phase` of a pod).
    pub prepare_create: fn(&mut Value),
    /// The parts of an update that a client does not decide: new, old.
    pub prepare_update: fn(&mut Value, &Value),
    /// The same for an update of the status.
    pub prepare_status: fn(&mut Value, &Value),
    /// What is wrong with an update of the status: new, old.
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    /// Whether `status` is written through its sub-resource only.
    pub status: bool,
    /// Whether `metadata.generation` follows changes of the spec.
    pub generation: bool,
    /// Whether an update without a resourceVersion is refused (C3.15).
    pub version_required: bool,
    /// Whether a delete answers with the object even if it is gone (C3.16).
    pub delete_returns_object: bool,
    /// How a name is checked.
    pub name: NameRule,
}

/// How names of a kind look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// DNS subdomain, 253.
    Subdomain,
    /// DNS label, 63.
    Label,
    /// DNS label that begins with a letter, 63 (services).
    Label1035,
    /// Any path segment (roles and bindings).
    PathSegment,
}

/// What tells a kind's rules from the usual ones is set by the `const fn`s below.
impl ResourceInfo {
    /// A kind of type `T`, cluster-scoped, with all verbs and no rules.
    pub const fn of<T>(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        Self {
            group,
            version,
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: false,
            verbs: CRUD,
            subresources: &[],
            fields: &[],
            stored_as: (group, plural),
            view: None,
            strategy: Strategy {
                normalise: through::<T>,
                default: |_| {},
                validate: |_| Vec::new(),
                validate_update: |_, _| Vec::new(),
                prepare_create: |_| {},
                prepare_update: |_, _| {},
                prepare_status: |_, _| {},
                validate_status: |_, _| Vec::new(),
                status: false,
                generation: false,
                version_required: false,
                delete_returns_object: false,
                name: NameRule::Subdomain,
            },
        }
    }

    /// Its objects live in namespaces.
    pub const fn namespaced(mut self) -> Self {
        self.namespaced = true;
        self
    }

    /// Short names.
    pub const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    /// It belongs to the category `all`.
    pub const fn in_all(mut self) -> Self {
        self.categories = &["all"];
        self
    }

    /// Verbs, where not all.
    pub const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    /// Sub-resources.
    pub const fn subresources(mut self, subresources: &'static [Subresource]) -> Self {
        self.subresources = subresources;
        self
    }

    /// Selectable fields.
    pub const fn fields(mut self, fields: &'static [SelectableField]) -> Self {
        self.fields = fields;
        self
    }

    /// Status is split off, and the generation follows the spec.
    pub const fn with_status(mut self) -> Self {
        self.strategy.status = true;
        self.strategy.generation = true;
        self
    }

    /// Status is split off; the kind has no generation (pods have since 1.33, nodes and namespaces have not).
    pub const fn with_status_only(mut self) -> Self {
        self.strategy.status = true;
        self
    }

    /// The generation follows the spec.
    pub const fn with_generation(mut self) -> Self {
        self.strategy.generation = true;
        self
    }

    /// Defaulting.
    pub const fn defaults(mut self, default: fn(&mut Value)) -> Self {
        self.strategy.default = default;
        self
    }

    /// Validation.
    pub const fn validated(mut self, validate: fn(&Value) -> Vec<FieldError>) -> Self {
        self.strategy.validate = validate;
        self
    }

    /// Validation of changes.
    pub const fn validated_update(mut self, validate: fn(&Value, &Value) -> Vec<FieldError>) -> Self {
        self.strategy.validate_update = validate;
        self
    }

    /// Preparation of new objects.
    pub const fn prepared(mut self, create: fn(&mut Value), update: fn(&mut Value, &Value)) -> Self {
        self.strategy.prepare_create = create;
        self.strategy.prepare_update = update;
        self
    }

    /// Preparation and validation of updates of the status.
    pub const fn status_rules(
        mut self,
        prepare: fn(&mut Value, &Value),
        validate: fn(&Value, &Value) -> Vec<FieldError>,
    ) -> Self {
        self.strategy.prepare_status = prepare;
        self.strategy.validate_status = validate;
        self
    }

    /// How names look.
    pub const fn named(mut self, rule: NameRule) -> Self {
        self.strategy.name = rule;
        self
    }

    /// A delete answers with the object.
    pub const fn delete_returns_object(mut self) -> Self {
        self.strategy.delete_returns_object = true;
        self
    }

    /// An update needs a resourceVersion.
    pub const fn version_required(mut self) -> Self {
        self.strategy.version_required = true;
        self
    }

    /// It is another view of what is stored under another group.
    pub const fn stored_as(mut self, group: &'static str, plural: &'static str, view: View) -> Self {
        self.stored_as = (group, plural);
        self.view = Some(view);
        self
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether objects of this kind are kept; reviews only get an answer.
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get")
    }

    /// The sub-resource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }
}

/// `status` of a kind.
pub const STATUS: Subresource = Subresource { name: "status", kind: None, verbs: &["get", "patch", "update"] };
/// `scale` of a kind.
pub const SCALE: Subresource =
    Subresource { name: "scale", kind: Some(("autoscaling", "v1", "Scale")), verbs: &["get", "patch", "update"] };

fn through<T: serde::Serialize + serde::de::DeserializeOwned>(mut value: Value) -> Result<Value, serde_json::Error> {
    match T::deserialize(&value) {
        Ok(typed) => serde_json::to_value(typed),
        Err(error) if !set_unset_times(&mut value) => Err(error),
        Err(_) => {
            let mut read = serde_json::to_value(T::deserialize(value)?)?;
            unset_times(&mut read);
            Ok(read)
        }
    }
}

/// A condition without its time is taken as it is (upstream's zero time), where the generated types ask for one.
const UNSET_TIME: &str = "0001-01-01T00:00:00Z";

/// Whether there was any.
fn set_unset_times(value: &mut Value) -> bool {
    let conditions =
        value.get_mut("status").and_then(|status| status.get_mut("conditions")).and_then(Value::as_array_mut);
    let mut has_unset = false;
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        if condition.get("lastTransitionTime").is_none_or(Value::is_null) {
            condition.insert("lastTransitionTime".to_owned(), UNSET_TIME.into());
            has_unset = true;
        }
    }
    has_unset
}

fn unset_times(value: &mut Value) {
    let conditions =
        value.get_mut("status").and_then(|status| status.get_mut("conditions")).and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|condition| condition["lastTransitionTime"] == UNSET_TIME)
    {
        condition["lastTransitionTime"] = Value::Null;
    }
}

/// All groups' tables, in the order in which discovery lists groups.
static TABLES: &[&[ResourceInfo]] = &[
    core::TABLE,
    apps::TABLE,
    events::TABLE,
    authentication::TABLE,
    authorization::TABLE,
    autoscaling::TABLE,
    batch::TABLE,
    certificates::TABLE,
    networking::TABLE,
    policy::TABLE,
    rbac::TABLE,
    storage::TABLE,
    scheduling::TABLE,
    coordination::TABLE,
    node::TABLE,
    discovery::TABLE,
    flowcontrol::TABLE,
];

/// Every kind.
pub fn all() -> impl Iterator<Item = &'static ResourceInfo> {
    TABLES.iter().flat_map(|table| table.iter())
}

/// By group, version and plural.
pub fn find_version(group: &str, version: &str, plural: &str) -> Option<&'static ResourceInfo> {
    all().find(|info| info.group == group && info.version == version && info.plural == plural)
}

/// By group and plural; of several versions the one that is stored.
pub fn find(group: &str, plural: &str) -> Option<&'static ResourceInfo> {
    all().find(|info| info.group == group && info.plural == plural)
}

/// By `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static ResourceInfo> {
    all().find(|info| info.kind == kind && info.api_version() == api_version)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_need_no_time() {
        let service = |time: Value| json!({ "status": { "conditions": [{ "type": "A", "status": "True", "reason": "b", "message": "", "lastTransitionTime": time }] } });
        let read = through::<k8s_openapi::api::core::v1::Service>;
        for time in [Value::Null, json!("2026-01-01T00:00:00Z")] {
            let kept = read(service(time.clone())).expect("it is taken");
            assert_eq!(kept["status"]["conditions"][0]["lastTransitionTime"], time);
        }
        assert!(read(json!({ "status": { "conditions": [{ "type": 1 }] } })).is_err());
    }
}
