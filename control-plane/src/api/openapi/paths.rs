//! The operations of the API as OpenAPI states them, as far as clients look at them: kubectl wants to know whether
//! PATCH takes `fieldValidation` and `dryRun` (C2.3, D).

use serde_json::{Map, Value, json};

use super::definitions;
use super::schemas::Dialect;
use crate::resources::ResourceInfo;

/// The paths of one kind.
pub(super) fn of_kind(dialect: Dialect, info: &ResourceInfo, paths: &mut Map<String, Value>) {
    let root = if info.group.is_empty() {
        format!("/api/{}", info.version)
    } else {
        format!("/apis/{}/{}", info.group, info.version)
    };
    let collection = if info.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", info.plural)
    } else {
        format!("{root}/{}", info.plural)
    };
    let operation = |verb: &Verb, kind| operation(dialect, info, verb, kind);
    let own = (info.group, info.version, info.kind);
    let has = |verb: &&Verb| info.verbs.contains(&verb.name);
    let collect = |verbs: &[Verb]| -> Map<String, Value> {
        verbs.iter().filter(has).map(|verb| (verb.method.to_owned(), operation(verb, own))).collect()
    };
    add(dialect, paths, &collection, info.namespaced, false, collect(ON_COLLECTION));
    if info.namespaced && info.verbs.contains(&"list") {
        add(dialect, paths, &format!("{root}/{}", info.plural), false, false, collect(&ON_COLLECTION[..1]));
    }
    let one = format!("{collection}/{{name}}");
    add(dialect, paths, &one, info.namespaced, true, collect(ON_OBJECT));
    for subresource in info.subresources {
        let kind = subresource.kind.unwrap_or(own);
        let operations = ON_OBJECT
            .iter()
            .chain(&ON_COLLECTION[1..2])
            .filter(|verb| subresource.verbs.contains(&verb.name))
            .map(|verb| (verb.method.to_owned(), operation(verb, kind)))
            .collect();
        add(dialect, paths, &format!("{one}/{}", subresource.name), info.namespaced, true, operations);
    }
}

struct Verb {
    name: &'static str,
    method: &'static str,
    action: &'static str,
}

const fn verb(name: &'static str, method: &'static str, action: &'static str) -> Verb {
    Verb { name, method, action }
}

const ON_COLLECTION: &[Verb] = &[
    verb("list", "get", "list"),
    verb("create", "post", "post"),
    verb("deletecollection", "delete", "deletecollection"),
];

const ON_OBJECT: &[Verb] = &[
    verb("get", "get", "get"),
    verb("update", "put", "put"),
    verb("patch", "patch", "patch"),
    verb("delete", "delete", "delete"),
];

fn add(
    dialect: Dialect,
    paths: &mut Map<String, Value>,
    path: &str,
    namespaced: bool,
    named: bool,
    mut operations: Map<String, Value>,
) {
    if operations.is_empty() {
        return;
    }
    let places = [("name", named), ("namespace", namespaced)];
    let places: Vec<Value> =
        places.iter().filter(|(_, is)| *is).map(|(name, _)| parameter(dialect, name, "path", "string")).collect();
    operations.insert("parameters".to_owned(), places.into());
    paths.insert(path.to_owned(), operations.into());
}

fn parameter(dialect: Dialect, name: &str, place: &str, kind: &str) -> Value {
    let mut parameter = json!({"name": name, "in": place});
    if place == "path" {
        parameter["required"] = json!(true);
    }
    match dialect {
        Dialect::V2 => {
            parameter["type"] = json!(kind);
            parameter["uniqueItems"] = json!(true);
        }
        Dialect::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    parameter
}

const READ: &[(&str, &str)] = &[];
const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

fn operation(dialect: Dialect, info: &ResourceInfo, verb: &Verb, (group, version, kind): (&str, &str, &str)) -> Value {
    let parameters = match verb.action {
        "list" => LIST,
        "post" | "put" => WRITE,
        "patch" => PATCH,
        "delete" | "deletecollection" => DELETE,
        _ => READ,
    };
    let mut parameters: Vec<Value> =
        parameters.iter().map(|(name, kind)| parameter(dialect, name, "query", kind)).collect();
    let body = definitions::kind_of(group, version, kind).map(|kind| kind.type_name());
    let answer = match verb.action {
        "list" => body.as_ref().map(|name| dialect.reference(&format!("{name}List"))),
        _ => body.as_ref().map(|name| dialect.reference(name)),
    };
    let sent = match verb.action {
        "post" | "put" => answer.clone(),
        "patch" => Some(json!({"type": "object"})),
        _ => None,
    };
    let types: &[&str] = if verb.action == "patch" { PATCH_TYPES } else { &["*/*"] };
    let mut operation = json!({
        "tags": [if info.group.is_empty() { "core" } else { info.group }],
        "x-kubernetes-action": verb.action,
        "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
    });
    let ok = match dialect {
        Dialect::V2 => {
            if let Some(schema) = sent {
                parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
            }
            operation["consumes"] = json!(types);
            operation["produces"] = json!(["application/json", "application/yaml"]);
            json!({"description": "OK", "schema": answer.unwrap_or_else(|| json!({"type": "string"}))})
        }
        Dialect::V3 => {
            if let Some(schema) = sent {
                let content: Map<String, Value> =
                    types.iter().map(|kind| ((*kind).to_owned(), json!({"schema": schema}))).collect();
                operation["requestBody"] = json!({"content": content, "required": true});
            }
            let schema = answer.unwrap_or_else(|| json!({"type": "string"}));
            json!({"description": "OK", "content": {"application/json": {"schema": schema}}})
        }
    };
    operation["parameters"] = parameters.into();
    operation["responses"] = json!({"200": ok, "401": {"description": "Unauthorized"}});
    operation
}
