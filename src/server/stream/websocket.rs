//! Websockets of clients, translated for the runtime, which does not know the newest of their protocols (A19.3, A19.4).

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use stoker_model::streams::websocket::{Bridge, accepted};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::server::reply::{self, Reply};

/// The 101 of a websocket, and the connection to come; `None` where the client's key is missing.
pub(super) fn accept(request: &mut Request<Incoming>, bridge: Bridge) -> Option<(Reply, OnUpgrade)> {
    let mut answer = Reply::new(reply::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = accepted(request.headers(), bridge.websocket_protocol())?;
    Some((answer, hyper::upgrade::on(request)))
}

/// Serves one client in a task of its own.
pub(super) fn serve(
    bridge: Bridge,
    client: OnUpgrade,
    runtime: Upgraded,
    permit: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        let _permit = permit;
        let work = async {
            match client.await {
                Ok(client) => {
                    if let Err(error) = bridge.run(TokioIo::new(client), TokioIo::new(runtime)).await {
                        debug!(%error, "a websocket ended early");
                    }
                }
                Err(error) => debug!(%error, "a websocket was not opened"),
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
}
