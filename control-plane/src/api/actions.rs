//! Requests that do something instead of reading or writing their object: reviews, bindings, evictions, tokens, logs.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use super::proxy;
use super::respond::{self, Answer, Wanted};
use super::serve::{Asked, Server};
use super::verbs::{AskedShape, Place, only, read_object, writer};
use super::websocket;
use crate::auth::identity::{Attributes, Decision, UserInfo};
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

pub(super) async fn dispatch(server: &Arc<Server>, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    let core = &server.cluster.core;
    match place.subresource.as_str() {
        "log" => {
            only(&asked.method, &[Method::GET])?;
            let answer = super::nodes::log(server, &place.namespace, &place.name, &asked).await?;
            if !websocket::is_asked(&asked.headers) {
                return Ok(answer);
            }
            websocket::wrap(answer, &asked.headers, asked.upgrade, server.stop.clone())
        }
        "token" => {
            only(&asked.method, &[Method::POST])?;
            let user = asked.user.clone();
            let request = body(asked).await?;
            super::node_restriction::check_token(core, &place.namespace, &place.name, &request, &user).await?;
            let answer = core.token(&place.namespace, &place.name, request, server.tokens.as_ref()).await?;
            Ok(respond::object(201, &answer, Wanted::JSON))
        }
        "eviction" => {
            only(&asked.method, &[Method::POST])?;
            let writer = writer(&asked)?;
            let eviction = body(asked).await?;
            core.evict(&place.namespace, &place.name, &eviction, &writer).await?;
            Ok(respond::object(201, &success(201), Wanted::JSON))
        }
        "binding" => {
            only(&asked.method, &[Method::POST])?;
            let writer = writer(&asked)?;
            let binding = body(asked).await?;
            core.bind(&place.namespace, &place.name, &binding, &writer).await?;
            Ok(respond::object(201, &success(201), Wanted::JSON))
        }
        "exec" | "attach" | "portforward" => proxy::stream(server, place, asked).await,
        "proxy" => proxy::proxy(server, place, asked).await,
        other => Err(StatusError::new(
            501,
            "NotImplemented",
            format!("{}/{other} is not served by this version of stoker-control-plane", place.info.plural),
        )),
    }
}

fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

async fn body(asked: Asked) -> Result<Value, StatusError> {
    let bytes = respond::read_body(asked.body).await?;
    respond::parse_body(&asked.headers, &bytes)
}

/// Kinds that are only asked, and `bindings`.
pub(super) async fn review(server: &Arc<Server>, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    only(&asked.method, &[Method::POST])?;
    let shape = AskedShape::of(&asked, false)?;
    let asker = asked.user.clone();
    let info = place.info;
    let writer = writer(&asked)?;
    let (mut review, _) = read_object(info, asked).await?;
    let status = match info.plural {
        "bindings" => {
            let name = text(&review["metadata"], "name").to_owned();
            server.cluster.core.bind(&place.namespace, &name, &review, &writer).await?;
            return Ok(respond::object(201, &success(201), shape.wanted));
        }
        "selfsubjectreviews" => json!({"userInfo": user_info(&asker)}),
        "tokenreviews" => token_review(server, &review["spec"]).await,
        "selfsubjectaccessreviews" => access(server, info.kind, &review["spec"], asker).await?,
        "subjectaccessreviews" => access(server, info.kind, &review["spec"], subject(&review["spec"])).await?,
        "localsubjectaccessreviews" => {
            let asked_for = text(&review["spec"]["resourceAttributes"], "namespace");
            if asked_for != place.namespace {
                let path = "spec.resourceAttributes.namespace";
                let error = FieldError::invalid(path, asked_for, "must match metadata.namespace");
                return Err(StatusError::invalid(info, "", &[error]));
            }
            access(server, info.kind, &review["spec"], subject(&review["spec"])).await?
        }
        "selfsubjectrulesreviews" => {
            let namespace = text(&review["spec"], "namespace");
            if namespace.is_empty() {
                return Err(StatusError::bad_request("no namespace on request"));
            }
            server.authorizer.rules(&asker, namespace).await
        }
        _ => return Err(StatusError::no_such_path()),
    };
    review["status"] = status;
    Ok(respond::object(201, &review, shape.wanted))
}

fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

async fn token_review(server: &Server, spec: &Value) -> Value {
    match server.authenticator.review_token(text(spec, "token"), &strings(&spec["audiences"])).await {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}),
        Err(error) => json!({"authenticated": false, "user": {}, "error": error.to_string()}),
    }
}

/// The user that a review asks about.
fn subject(spec: &Value) -> UserInfo {
    UserInfo {
        name: text(spec, "user").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, list)| (key.clone(), strings(list)))
            .collect(),
    }
}

async fn access(server: &Server, kind: &str, spec: &Value, user: UserInfo) -> Result<Value, StatusError> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let wrong = |error: FieldError| Err(StatusError::invalid_kind("authorization.k8s.io", kind, "", &[error]));
    if user.name.is_empty() && user.groups.is_empty() {
        let detail = "at least one of user or group must be specified";
        return wrong(FieldError::invalid("spec.user", "", detail));
    }
    let attributes = match (resource.is_object(), path.is_object()) {
        (true, true) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            return wrong(FieldError::invalid("spec.nonResourceAttributes", path.clone(), detail));
        }
        (false, false) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return wrong(FieldError::invalid("spec.resourceAttributes", Value::Null, detail));
        }
        (false, true) => Attributes {
            user,
            verb: text(path, "verb").to_owned(),
            path: text(path, "path").to_owned(),
            ..Attributes::default()
        },
        (true, false) => {
            let get = |key: &str| text(resource, key).to_owned();
            Attributes {
                user,
                verb: get("verb"),
                group: get("group"),
                version: get("version"),
                resource: get("resource"),
                subresource: get("subresource"),
                namespace: get("namespace"),
                name: get("name"),
                field_selector: selector_text(&resource["fieldSelector"]),
                label_selector: selector_text(&resource["labelSelector"]),
                ..Attributes::default()
            }
        }
    };
    let (allowed, denied, reason) = match server.authorizer.authorize(&attributes).await {
        Decision::Allow(reason) => (true, false, reason),
        Decision::Deny(reason) => (false, true, reason),
        Decision::NoOpinion(reason) => (false, false, reason),
    };
    let mut status = json!({"allowed": allowed});
    if denied {
        status["denied"] = json!(true);
    }
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    Ok(status)
}

fn selector_text(selector: &Value) -> String {
    let raw = text(selector, "rawSelector");
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let terms: Vec<String> = items(selector, "requirements")
        .filter(|requirement| requirement["operator"] == "In")
        .map(|requirement| format!("{}={}", text(requirement, "key"), strings(&requirement["values"]).join(",")))
        .collect();
    terms.join(",")
}
