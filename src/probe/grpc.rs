//! Asks a server for its health: one call of `grpc.health.v1.Health/Check`, without TLS (A5.10).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::net::TcpStream;

use super::action::USER_AGENT;
use super::dial;

/// gRPC's code for a method that a server does not have.
const UNIMPLEMENTED: &str = "12";
/// gRPC's code for a call that took too long.
const DEADLINE_EXCEEDED: &str = "4";
/// The answer has one small number in it.
const LONGEST_ANSWER: usize = 64 << 10;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    fn text(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// Whether the service is well; the error says why not.
pub(super) async fn check(host: &str, port: u16, service: &str, limit: Duration) -> Result<(), String> {
    let address = dial::join(host, port);
    let seconds = limit.as_secs();
    let mut connected = false;
    match tokio::time::timeout(limit, call(host, port, service, &mut connected)).await {
        Ok(result) => result,
        Err(_) if connected => Err(format!("timeout: health rpc did not complete within {seconds}s")),
        Err(_) => Err(format!(
            "timeout: failed to connect service \"{address}\" within {seconds}s: context deadline exceeded"
        )),
    }
}

async fn call(host: &str, port: u16, service: &str, connected: &mut bool) -> Result<(), String> {
    let address = dial::join(host, port);
    let stream = dial::connect(host, port)
        .await
        .and_then(|stream| TcpStream::from_std(stream).map_err(|error| error.to_string()))
        .map_err(|error| format!("error: failed to connect service at \"{address}\": {error}"))?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("error: failed to connect service at \"{address}\": {error}"))?;
    *connected = true;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(framed(&HealthCheckRequest { service: service.to_owned() })))
        .map_err(|error| format!("error: health rpc probe failed: {error}"))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let collected = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| error.to_string())?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok::<_, String>((head.headers, trailers, collected.to_bytes()))
    };
    let answer = answered.await;
    connection.abort();
    let (headers, trailers, body) = answer.map_err(|error| format!("error: health rpc probe failed: {error}"))?;
    judge(&headers, &trailers, &body)
}

/// One message, uncompressed, with its length before it.
fn framed(message: &HealthCheckRequest) -> Bytes {
    let body = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + body.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(body.len()).unwrap_or_default());
    frame.put_slice(&body);
    frame.freeze()
}

fn judge(headers: &HeaderMap, trailers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let field = |name: &str| {
        let value = trailers.get(name).or_else(|| headers.get(name));
        value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (code, message) = (field("grpc-status"), field("grpc-message"));
    match code.as_str() {
        "0" => {}
        UNIMPLEMENTED => {
            return Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ));
        }
        DEADLINE_EXCEEDED => return Err(format!("timeout: health rpc did not complete: {message}")),
        "" => return Err("error: health rpc probe failed: the server did not answer with a gRPC status".to_owned()),
        _ => return Err(format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}")),
    }
    let answer = body.get(5..).map(HealthCheckResponse::decode);
    match answer {
        Some(Ok(answer)) if answer.status() == ServingStatus::Serving => Ok(()),
        Some(Ok(answer)) => Err(format!("service unhealthy (responded with \"{}\")", answer.status().text())),
        _ => Err("error: health rpc probe failed: the answer is not a health message".to_owned()),
    }
}
