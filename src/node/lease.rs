//! The Lease that tells the cluster that this node lives (A16.9).

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use stoker_model::handle::ApiError;

use crate::clock::Clock;
use crate::upstream::{Backoff, NodeApi};

/// Renews four times within a lease's duration, for ever. The lease may take this long to be written.
pub async fn renew_lease(api: NodeApi, seconds: i32, clock: Clock) {
    let every = Duration::from_secs(u64::from(seconds.max(1).unsigned_abs())) / 4;
    let mut held: Option<Lease> = None;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
    loop {
        let tried = tokio::time::timeout(every, renew(&api, held.take(), seconds, clock)).await;
        let wait = match tried {
            Ok(Ok(lease)) => {
                held = Some(lease);
                backoff.reset();
                every
            }
            // Somebody else wrote it: read it again, at once the first time.
            Ok(Err(error)) => {
                tracing::warn!(%error, "lease not renewed");
                backoff.wait()
            }
            Err(_) => {
                tracing::warn!("lease not renewed: no answer within {every:?}");
                backoff.wait()
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(api: &NodeApi, held: Option<Lease>, seconds: i32, clock: Clock) -> Result<Lease, ApiError> {
    let known = match held {
        Some(lease) => Some(lease),
        None => match api.lease().await {
            Ok(lease) => Some(lease),
            Err(ApiError::NotFound(_)) => None,
            Err(error) => return Err(error),
        },
    };
    let spec = LeaseSpec {
        holder_identity: Some(api.name().to_owned()),
        lease_duration_seconds: Some(seconds),
        renew_time: Some(MicroTime(clock.now().wall)),
        ..known.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default()
    };
    match known {
        Some(mut lease) => {
            lease.spec = Some(spec);
            if lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
                lease.metadata.owner_references = owner(api).await;
            }
            api.update_lease(&lease).await
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(api.name().to_owned()),
                namespace: Some("kube-node-lease".to_owned()),
                owner_references: owner(api).await,
                ..ObjectMeta::default()
            };
            api.create_lease(&Lease { metadata, spec: Some(spec) }).await
        }
    }
}

/// The Node, so that the lease goes with it; none while there is no Node.
async fn owner(api: &NodeApi) -> Option<Vec<OwnerReference>> {
    let node = api.get().await.ok()?;
    Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: api.name().to_owned(),
        uid: node.metadata.uid?,
        ..OwnerReference::default()
    }])
}
