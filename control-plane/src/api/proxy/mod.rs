//! Requests that go on to nodes, pods and services: exec, attach, port-forward and `proxy` (A19.9, C3.25).
//!
//! Nothing here knows what is said in a stream: after an upgrade bytes go both ways. Websockets that only newer nodes take go to nodes
//! that declare it, and to the others as SPDY.

mod location;
mod pass;
mod rewrite;

use std::fmt::Write as _;
use std::sync::Arc;

use http::Method;
use serde_json::Value;
use stoker_model::streams::websocket::{Bridge, Streams, TUNNEL, V5, offers};

use self::location::{Backend, Scheme};
use super::nodes::{address_of, container, node_of};
use super::options::decode;
use super::respond::Answer;
use super::serve::{Asked, Server, refused};
use super::verbs::{Place, only};
use crate::auth::identity::{Attributes, Decision};
use crate::resources;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// What a node must declare to be sent the newest websockets.
const TAKES_WEBSOCKETS: &str = "ExtendWebSocketsToKubelet";

/// `pods/exec`, `pods/attach` and `pods/portforward`.
pub(super) async fn stream(server: &Arc<Server>, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    only(&asked.method, &[Method::GET, Method::POST])?;
    may_create(server, place, &asked).await?;
    if !pass::is_upgrade(&asked.headers) {
        return Err(StatusError::bad_request("Upgrade request required"));
    }
    let (namespace, name) = (&place.namespace, &place.name);
    let pods = resources::find("", "pods").expect("`resources::core` has pods");
    let pod = server.cluster.core.find(pods, namespace, name).await?;
    let pod = pod.ok_or_else(|| StatusError::not_found(pods, name))?;
    let mut path = match place.subresource.as_str() {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        kind => format!("/{kind}/{namespace}/{name}/{}", container(&pod, asked.query.get("container"), name)?),
    };
    let node = node_of(server, &pod)
        .await?
        .ok_or_else(|| StatusError::bad_request(format!("pod {name} does not have a host assigned")))?;
    let query = node_query(&place.subresource, &asked.raw_query);
    let bridge = bridge(&place.subresource, &asked.headers, &query).filter(|_| !declares(&node, TAKES_WEBSOCKETS));
    path.push_str(&query);
    let (address, port) = address_of(&node).ok_or_else(|| StatusError::internal("the node has no address"))?;
    let backend = Backend { scheme: Scheme::Node, address, port };
    match bridge {
        Some(bridge) => pass::translate(server, &backend, &path, asked, bridge).await,
        None => pass::upgrade(server, &backend, &path, asked).await,
    }
}

/// A websocket comes as GET, which must not be a way around the right to `create` (A19.9).
async fn may_create(server: &Server, place: &Place, asked: &Asked) -> Result<(), StatusError> {
    let attributes = Attributes {
        user: asked.user.clone(),
        verb: "create".to_owned(),
        version: "v1".to_owned(),
        resource: place.info.plural.to_owned(),
        subresource: place.subresource.clone(),
        namespace: place.namespace.clone(),
        name: place.name.clone(),
        path: asked.path.clone(),
        ..Attributes::default()
    };
    match server.authorizer.authorize(&attributes).await {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(refused(&attributes, &reason)),
    }
}

/// How the newest websocket protocols are translated for a node that takes only SPDY; `None`: the client offers none of them.
fn bridge(subresource: &str, headers: &http::HeaderMap, query: &str) -> Option<Bridge> {
    if subresource == "portforward" {
        return offers(headers, TUNNEL).then_some(Bridge::Tunnel);
    }
    let has = |flag: &str| query.trim_start_matches('?').split('&').any(|pair| pair.strip_suffix("=1") == Some(flag));
    let (stdin, stdout, tty) = (has("input"), has("output"), has("tty"));
    let streams = Streams { stdin, stdout, stderr: has("error") && !tty, tty };
    offers(headers, V5).then_some(Bridge::Streams(streams))
}

fn declares(node: &Value, feature: &str) -> bool {
    node["status"]["declaredFeatures"].as_array().is_some_and(|list| list.iter().any(|one| one == feature))
}

/// The query as nodes read it: `stdin=true` is `input=1` there. Values stay escaped as they came.
fn node_query(subresource: &str, query: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut text = String::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let separator = if text.is_empty() { '?' } else { '&' };
        let is_true = !matches!(decode(value, true).to_ascii_lowercase().as_str(), "false" | "0");
        let flag = match (subresource, decode(name, true).as_str()) {
            ("portforward", "ports") => {
                let _ = write!(text, "{separator}port={value}");
                continue;
            }
            ("exec", "command") => {
                let _ = write!(text, "{separator}command={value}");
                continue;
            }
            ("exec" | "attach", "stdin") => "input",
            ("exec" | "attach", "stdout") => "output",
            ("exec" | "attach", "stderr") => "error",
            ("exec" | "attach", "tty") => "tty",
            _ => continue,
        };
        if is_true {
            let _ = write!(text, "{separator}{flag}=1");
        }
    }
    text
}

/// `proxy` of a node, pod or service.
pub(super) async fn proxy(server: &Arc<Server>, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    let backend = location::find(server, place).await?;
    let depth = if place.info.namespaced { 7 } else { 5 };
    let path = rest(&asked.path, depth);
    if pass::is_upgrade(&asked.headers) {
        let path = with_query(if path.is_empty() { "/" } else { path }, &asked.raw_query);
        return pass::upgrade(server, &backend, &path, asked).await;
    }
    if path.is_empty() && matches!(asked.method, Method::GET | Method::HEAD) {
        return Ok(pass::redirect(&with_query(&format!("{}/", asked.path), &asked.raw_query)));
    }
    let before = asked.path[..asked.path.len() - path.len()].to_owned();
    let onward = with_query(if path.is_empty() { "/" } else { path }, &asked.raw_query);
    pass::plain(server, &backend, &onward, &before, asked).await
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// What follows the first `depth` segments of a path, as it came: with its slash, or empty.
fn rest(path: &str, depth: usize) -> &str {
    let nth = path.match_indices('/').nth(depth);
    nth.map_or("", |(at, _)| &path[at..])
}

/// Whether anybody but nodes' own clients may be sent there: loopback and link-local addresses are this machine's own business.
fn is_allowed(address: std::net::IpAddr) -> bool {
    let unusable = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    match address {
        std::net::IpAddr::V4(v4) => !unusable && !v4.is_link_local() && !v4.is_broadcast(),
        std::net::IpAddr::V6(v6) => !unusable && !v6.is_unicast_link_local(),
    }
}

fn parse_address(value: &Value, key: &str) -> Result<std::net::IpAddr, StatusError> {
    let address = text(value, key).parse().ok().filter(|address| is_allowed(*address));
    address.ok_or_else(|| StatusError::bad_request("address not allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_translated() {
        // A19.9
        let query = "container=c&command=sh&command=-c&command=a%26b&stdin=true&stdout=1&stderr=false&tty=&x=y";
        assert_eq!(node_query("exec", query), "?command=sh&command=-c&command=a%26b&input=1&output=1&tty=1");
        assert_eq!(node_query("attach", "stdin=0&stdout=true&command=x"), "?output=1");
        assert_eq!(node_query("portforward", "ports=80&ports=81"), "?port=80&port=81");
        assert_eq!(node_query("portforward", ""), "");
    }

    #[test]
    fn the_newest_protocols_are_translated() {
        // A19.4
        let offered = |protocol: &'static str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("upgrade", http::HeaderValue::from_static("websocket"));
            headers.insert("sec-websocket-protocol", http::HeaderValue::from_static(protocol));
            headers
        };
        let of = |subresource, protocol, query| bridge(subresource, &offered(protocol), query);
        let both = "v5.channel.k8s.io, v4.channel.k8s.io";
        let streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
        assert_eq!(of("exec", both, "?command=tty%3D1&input=1&output=1&error=1"), Some(Bridge::Streams(streams)));
        let terminal = Streams { stdin: false, stdout: true, stderr: false, tty: true };
        assert_eq!(of("attach", both, "?output=1&error=1&tty=1"), Some(Bridge::Streams(terminal)));
        assert_eq!(of("exec", "v4.channel.k8s.io", "?output=1"), None);
        assert_eq!(of("portforward", "SPDY/3.1+portforward.k8s.io", ""), Some(Bridge::Tunnel));
        assert_eq!(of("portforward", "v4.channel.k8s.io", "?port=1"), None);
    }

    #[test]
    fn the_rest_of_a_path_stays_as_it_came() {
        let path = "/api/v1/namespaces/a/pods/b:80/proxy/x%2Fy/";
        assert_eq!(rest(path, 7), "/x%2Fy/");
        assert_eq!(rest("/api/v1/nodes/n/proxy/", 5), "/");
        assert_eq!(rest("/api/v1/nodes/n/proxy", 5), "");
    }

    #[test]
    fn some_addresses_are_no_targets() {
        for (address, allowed) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(is_allowed(address.parse().expect("an address")), allowed, "{address}");
        }
    }
}
