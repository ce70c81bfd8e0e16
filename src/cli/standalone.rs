//! What stands in for the API server where there is none, and for its judgement where nobody asks for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret};
use stoker_model::handle::{ApiError, Authorizer, BoundToken, MirrorApi, ObjectApi, PodApi, ServiceLinks, UserInfo};
use stoker_model::pod::PodRef;

/// A node without an API server (A22.2d): writing goes nowhere, and there are no objects.
#[derive(Debug)]
pub(super) struct Standalone;

fn nobody() -> ApiError {
    ApiError::Rejected("this node has no API server: it was started without --kubeconfig".to_owned())
}

#[async_trait]
impl PodApi for Standalone {
    async fn patch_status(&self, _: &PodRef, _: &PodStatus) -> Result<(), ApiError> {
        Ok(())
    }

    async fn delete_finished(&self, _: &PodRef) -> Result<(), ApiError> {
        Ok(())
    }
}

#[async_trait]
impl MirrorApi for Standalone {
    async fn create_mirror(&self, _: &Pod) -> Result<(), ApiError> {
        Ok(())
    }
}

#[async_trait]
impl ObjectApi for Standalone {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<Arc<ConfigMap>>, ApiError> {
        Err(nobody())
    }

    async fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<Secret>>, ApiError> {
        Err(nobody())
    }

    async fn service_account_token(&self, _: &PodRef, _: &str, _: &[String], _: i64) -> Result<BoundToken, ApiError> {
        Err(nobody())
    }
}

impl ServiceLinks for Standalone {
    fn environment(&self, _: &str, _: bool) -> Option<BTreeMap<String, String>> {
        Some(BTreeMap::new())
    }
}

#[async_trait]
impl Authorizer for Standalone {
    async fn may(&self, _: &UserInfo, _: &str, _: &str) -> Result<bool, ApiError> {
        Err(nobody())
    }
}

/// `authorization.mode: AlwaysAllow`.
#[derive(Debug)]
pub(super) struct AlwaysAllow;

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn may(&self, _: &UserInfo, _: &str, _: &str) -> Result<bool, ApiError> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_always_allowed_is_not_asked_about() {
        // A18.17, `AlwaysAllow`.
        let nobody = UserInfo { name: String::new(), groups: Vec::new() };
        assert_eq!(AlwaysAllow.may(&nobody, "delete", "proxy").await.ok(), Some(true));
    }
}
