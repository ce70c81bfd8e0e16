//! Asking nodes: the API server as a client of their HTTPS port (A19.9).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::respond::Answer;
use super::serve::{Asked, Server};
use crate::resources;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

/// Longer, and the node counts as not reachable.
const CONNECT: Duration = Duration::from_secs(10);
/// Where a node listens if it does not say.
const KUBELET_PORT: u16 = 10250;

/// Reaches nodes with the API server's client certificate.
#[derive(Clone)]
pub struct NodeClient {
    tls: Arc<rustls::ClientConfig>,
    anybody: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for NodeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeClient").finish_non_exhaustive()
    }
}

impl NodeClient {
    /// With a configuration that has the API server's client certificate for nodes, and says whose certificates are
    /// good; and another for pods and services that want TLS.
    pub fn new(tls: Arc<rustls::ClientConfig>, anybody: Arc<rustls::ClientConfig>) -> Self {
        Self { tls, anybody }
    }

    /// Sends a request over TLS. Only nodes are shown the API server's certificate.
    pub(super) async fn send<B>(
        &self,
        address: IpAddr,
        port: u16,
        request: Request<B>,
        is_node: bool,
    ) -> Result<Response<Incoming>, String>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let tls = if is_node { self.tls.clone() } else { self.anybody.clone() };
        let connect = async {
            let stream = dial(address, port).await?;
            let name = ServerName::IpAddress(address.into());
            TlsConnector::from(tls).connect(name, stream).await.map_err(|error| error.to_string())
        };
        let stream = in_time(address, port, connect).await?;
        talk(stream, request).await
    }

    /// Sends a request without TLS.
    pub(super) async fn send_plain<B>(
        &self,
        address: IpAddr,
        port: u16,
        request: Request<B>,
    ) -> Result<Response<Incoming>, String>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = in_time(address, port, dial(address, port)).await?;
        talk(stream, request).await
    }

    async fn get(&self, address: IpAddr, port: u16, path: &str) -> Result<Response<Incoming>, String> {
        let request = Request::get(path)
            .header("host", format!("{address}:{port}"))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        self.send(address, port, request, true).await
    }
}

async fn dial(address: IpAddr, port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect((address, port)).await.map_err(|error| error.to_string())?;
    // Streams carry single key presses. Where it cannot be set they come a little later.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn in_time<T>(address: IpAddr, port: u16, connect: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = |_| Err(format!("dial tcp {address}:{port}: i/o timeout"));
    tokio::time::timeout(CONNECT, connect).await.unwrap_or_else(late)
}

async fn talk<S, B>(stream: S, request: Request<B>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node or pod ended early");
        }
    });
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// `pods/log`: the node's answer, as it comes.
pub(super) async fn log(server: &Server, namespace: &str, name: &str, asked: &Asked) -> Result<Answer, StatusError> {
    let core = &server.cluster.core;
    let pods = resources::find("", "pods").expect("`resources::core` has pods");
    let pod = core.find(pods, namespace, name).await?.ok_or_else(|| StatusError::not_found(pods, name))?;
    let container = container(&pod, asked.query.get("container"), name)?;
    let wrong = wrong_log_options(|option| asked.query.get(option));
    if !wrong.is_empty() {
        return Err(StatusError::invalid_kind("", "PodLogOptions", name, &wrong));
    }
    let Some(node) = node_of(server, &pod).await? else {
        // Nothing was started yet, so nothing was written.
        return Ok(super::respond::text(200, ""));
    };
    let (address, port) = address_of(&node).ok_or_else(|| {
        StatusError::internal(format!("no preferred addresses found; known addresses: {}", node["status"]["addresses"]))
    })?;
    let query: Vec<&str> = asked
        .raw_query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("container=") && !pair.starts_with("insecureSkipTLS"))
        .collect();
    let mut path = format!("/containerLogs/{namespace}/{name}/{container}");
    if !query.is_empty() {
        path.push('?');
        path.push_str(&query.join("&"));
    }
    let answer = server
        .nodes
        .get(address, port, &path)
        .await
        .map_err(|error| StatusError::internal(format!("Get \"https://{address}:{port}{path}\": {error}")))?;
    let (parts, body) = answer.into_parts();
    if !parts.status.is_success() {
        return Err(refused(parts.status.as_u16(), body, &container).await);
    }
    let mut passed = Response::new(body.map_err(std::io::Error::other).boxed_unsync());
    *passed.status_mut() = parts.status;
    let kind = parts.headers.get("content-type").cloned();
    let plain = http::HeaderValue::from_static("text/plain");
    passed.headers_mut().insert("content-type", kind.unwrap_or(plain));
    Ok(passed)
}

/// What is wrong with the options of a log (A20.8). What is no number the node refuses.
fn wrong_log_options<'a>(get: impl Fn(&str) -> &'a str) -> Vec<FieldError> {
    let mut wrong = Vec::new();
    let mut at_least = |option: &str, least: i64, detail: &str| {
        if let Some(number) = get(option).parse::<i64>().ok().filter(|number| *number < least) {
            wrong.push(FieldError::invalid(option, number, detail));
        }
    };
    at_least("tailLines", 0, "must be greater than or equal to 0");
    at_least("limitBytes", 1, "must be greater than 0");
    let [seconds, time] = ["sinceSeconds", "sinceTime"].map(|option| !get(option).is_empty());
    if !(seconds && time) {
        at_least("sinceSeconds", 1, "must be greater than 0");
    }
    if seconds && time {
        wrong.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if !get("stream").is_empty() {
        wrong.push(FieldError::forbidden("stream", "may not be specified"));
    }
    wrong
}

/// The node of a pod; `None` where it has none yet.
pub(super) async fn node_of(server: &Server, pod: &Value) -> Result<Option<Value>, StatusError> {
    let name = text(&pod["spec"], "nodeName");
    if name.is_empty() {
        return Ok(None);
    }
    let nodes = resources::find("", "nodes").expect("`resources::core` has nodes");
    let node = server.cluster.core.find(nodes, "", name).await?;
    node.map(Some).ok_or_else(|| StatusError::not_found(nodes, name))
}

/// What a node's refusal is to the client.
async fn refused(code: u16, body: Incoming, container: &str) -> StatusError {
    let limited = http_body_util::Limited::new(body, 64 << 10);
    let bytes = limited.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
    let message = String::from_utf8_lossy(&bytes).trim().to_owned();
    match code {
        400 => StatusError::bad_request(message),
        401 | 403 => StatusError::internal(format!("the node refused the API server: {message}")),
        404 => {
            StatusError::new(404, "NotFound", format!("the server could not find the requested resource: {message}"))
        }
        _ if message.is_empty() => {
            StatusError::internal(format!("the node answered {code} about the logs of container {container:?}"))
        }
        _ => StatusError::internal(message),
    }
}

/// The container whose logs are meant; one name is needed where there are several.
pub(super) fn container(pod: &Value, asked: &str, name: &str) -> Result<String, StatusError> {
    let spec = &pod["spec"];
    let names =
        |list: &str| -> Vec<String> { items(spec, list).map(|container| text(container, "name").to_owned()).collect() };
    let (plain, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if asked.is_empty() {
        if let ([only], true, true) = (plain.as_slice(), init.is_empty(), ephemeral.is_empty()) {
            return Ok(only.clone());
        }
        let mut message =
            format!("a container name must be specified for pod {name}, choose one of: [{}]", plain.join(" "));
        if !init.is_empty() {
            message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        if !ephemeral.is_empty() {
            message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
        }
        return Err(StatusError::bad_request(message));
    }
    if plain.iter().chain(&init).chain(&ephemeral).any(|known| known == asked) {
        return Ok(asked.to_owned());
    }
    Err(StatusError::bad_request(format!("container {asked} is not valid for pod {name}")))
}

/// Where the node's HTTPS port is: its first internal address, else any that is an address.
pub(super) fn address_of(node: &Value) -> Option<(IpAddr, u16)> {
    let addresses = || items(&node["status"], "addresses");
    let parse = |entry: &Value| text(entry, "address").parse::<IpAddr>().ok();
    let address = addresses()
        .filter(|entry| entry["type"] == "InternalIP")
        .find_map(parse)
        .or_else(|| addresses().find_map(parse))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    Some((address, port.unwrap_or(KUBELET_PORT)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_of_logs_are_checked() {
        // A20.8
        let of = |options: &[(&str, &str)]| {
            let get = |name: &str| options.iter().find(|(option, _)| *option == name).map_or("", |(_, value)| *value);
            wrong_log_options(get).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(of(&[("tailLines", "0"), ("limitBytes", "1"), ("sinceSeconds", "1"), ("follow", "true")]).is_empty());
        for (option, value, text) in [
            ("tailLines", "-1", "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes", "0", "limitBytes: Invalid value: 0: must be greater than 0"),
            ("sinceSeconds", "0", "sinceSeconds: Invalid value: 0: must be greater than 0"),
            ("stream", "Stdout", "stream: Forbidden: may not be specified"),
        ] {
            assert_eq!(of(&[(option, value)]), [text]);
        }
        let both = of(&[("sinceSeconds", "5"), ("sinceTime", "2026-01-02T03:04:05Z")]);
        assert_eq!(both.len(), 1);
        assert!(
            both[0].ends_with("Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"),
            "{both:?}"
        );
    }

    #[test]
    fn one_container_is_picked_or_asked_for() {
        // D1.21
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&pod, "", "p").expect("the only one"), "a");
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, "i", "p").expect("named"), "i");
        assert_eq!(
            container(&pod, "", "p").expect_err("which?").message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&pod, "x", "p").expect_err("unknown").message, "container x is not valid for pod p");
    }
}
