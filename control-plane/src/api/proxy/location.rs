//! Where a `proxy` request goes: `[scheme:]name[:port]` of a node, a pod or a service.

use std::net::IpAddr;

use serde_json::Value;

use super::super::nodes::address_of;
use super::super::serve::Server;
use super::super::verbs::Place;
use super::{is_allowed, parse_address};
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::resources::{self, ResourceInfo};

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Plain HTTP.
    Http,
    /// TLS, whoever answers.
    Https,
    /// TLS with the certificate that nodes know.
    Node,
}

/// Who a request goes on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backend {
    pub(super) scheme: Scheme,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// A name with what was asked around it.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    scheme: Scheme,
    name: &'a str,
    port: &'a str,
}

fn split(id: &str) -> Option<Asked<'_>> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return None,
    };
    let scheme = match scheme {
        "" | "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    (!name.is_empty()).then_some(Asked { scheme, name, port })
}

pub(super) async fn find(server: &Server, place: &Place) -> Result<Backend, StatusError> {
    let info = place.info;
    let invalid = || StatusError::bad_request(format!("invalid {} request {:?}", info.singular, place.name));
    let asked = split(&place.name).ok_or_else(invalid)?;
    match info.plural {
        "nodes" => {
            let node = one(server, info, "", asked.name).await?;
            let (address, own) = address_of(&node).ok_or_else(|| StatusError::internal("the node has no address"))?;
            if !is_allowed(address) {
                return Err(StatusError::bad_request("address not allowed"));
            }
            let port = if asked.port.is_empty() { own } else { asked.port.parse().map_err(|_| invalid())? };
            let scheme = if port == own { Scheme::Node } else { asked.scheme };
            Ok(Backend { scheme, address, port })
        }
        "pods" => {
            let pod = one(server, info, &place.namespace, asked.name).await?;
            let default = match asked.scheme {
                Scheme::Http => 80,
                _ => 443,
            };
            let port = match asked.port {
                "" => first_port(&pod).unwrap_or(default),
                port => port.parse().map_err(|_| invalid())?,
            };
            Ok(Backend { scheme: asked.scheme, address: parse_address(&pod["status"], "podIP")?, port })
        }
        _ => service(server, place, &asked).await,
    }
}

async fn one(server: &Server, info: &ResourceInfo, namespace: &str, name: &str) -> Result<Value, StatusError> {
    let found = server.cluster.core.find(info, namespace, name).await?;
    found.ok_or_else(|| StatusError::not_found(info, name))
}

fn first_port(pod: &Value) -> Option<u16> {
    let port = |container: &Value| items(container, "ports").next().and_then(|port| number(&port["containerPort"]));
    items(&pod["spec"], "containers").find_map(port)
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

/// Any ready endpoint of the service's port.
async fn service(server: &Server, place: &Place, asked: &Asked<'_>) -> Result<Backend, StatusError> {
    let service = one(server, place.info, &place.namespace, asked.name).await?;
    let name = port_name(&service, asked.port).ok_or_else(|| {
        StatusError::unavailable(format!("no service port {:?} found for service {:?}", asked.port, asked.name))
    })?;
    let none = || StatusError::unavailable(format!("no endpoints available for service {:?}", asked.name));
    let slices = resources::find("discovery.k8s.io", "endpointslices").expect("`resources::discovery` has slices");
    let slices = server.cluster.core.all(slices, &place.namespace).await?;
    let of_service = |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == asked.name;
    let mut ready = Vec::new();
    for slice in slices.iter().filter(of_service) {
        let Some(port) = items(slice, "ports").find(|port| text(port, "name") == name) else { continue };
        let Some(port) = number(&port["port"]) else { continue };
        for endpoint in items(slice, "endpoints").filter(|endpoint| endpoint["conditions"]["ready"] != false) {
            let first = endpoint["addresses"][0].as_str().and_then(|address| address.parse::<IpAddr>().ok());
            ready.extend(first.filter(|address| is_allowed(*address)).map(|address| (address, port)));
        }
    }
    if ready.is_empty() {
        return Err(none());
    }
    let random = uuid::Uuid::new_v4().as_u64_pair().0;
    let nth = usize::try_from(random % u64::try_from(ready.len()).unwrap_or(1)).unwrap_or_default();
    let (address, port) = ready[nth];
    Ok(Backend { scheme: asked.scheme, address, port })
}

/// The name of the port that is meant by a name or number; without any, the only one that has no name.
fn port_name<'a>(service: &'a Value, asked: &str) -> Option<&'a str> {
    let ports: Vec<&Value> = items(&service["spec"], "ports").collect();
    if asked.is_empty() {
        return Some("");
    }
    let is = |port: &&&Value| text(port, "name") == asked || port["port"].to_string() == asked;
    ports.iter().find(is).map(|port| text(port, "name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_come_apart() {
        let asked = |scheme, name, port| Some(Asked { scheme, name, port });
        assert_eq!(split("a"), asked(Scheme::Http, "a", ""));
        assert_eq!(split("a:web"), asked(Scheme::Http, "a", "web"));
        assert_eq!(split("https:a:"), asked(Scheme::Https, "a", ""));
        for wrong in ["", ":80", "ftp:a:1", "a:b:c:d"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ports_go_by_name_or_number() {
        let service = json!({"spec": {"ports": [{"name": "web", "port": 80}, {"name": "tls", "port": 443}]}});
        assert_eq!(port_name(&service, "tls"), Some("tls"));
        assert_eq!(port_name(&service, "80"), Some("web"));
        assert_eq!(port_name(&service, "81"), None);
        assert_eq!(port_name(&json!({"spec": {"ports": [{"port": 80}]}}), ""), Some(""));
    }
}
