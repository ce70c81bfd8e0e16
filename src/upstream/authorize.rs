//! Asks the API server whose a token is, and what a user may do on this node.

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use serde_json::json;
use stoker_model::handle::{ApiError, Authorizer, TokenReviewer, UserInfo};

use super::client::ApiServer;

/// One `SubjectAccessReview` per question (A18.17); whoever asks often keeps the answers.
#[derive(Clone, Debug)]
pub struct AccessReviews {
    api: ApiServer,
    node: String,
}

impl AccessReviews {
    /// Asks about the node of that name.
    pub const fn new(api: ApiServer, node: String) -> Self {
        Self { api, node }
    }
}

#[async_trait]
impl Authorizer for AccessReviews {
    async fn may(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, ApiError> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "groups": user.groups,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes", "name": self.node, "subresource": subresource,
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer: SubjectAccessReview = self.api.create(path, &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

#[async_trait]
impl TokenReviewer for AccessReviews {
    async fn who(&self, token: &str) -> Result<Option<UserInfo>, ApiError> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token },
        });
        let answer: TokenReview = self.api.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        Ok(user
            .map(|user| UserInfo { name: user.username.unwrap_or_default(), groups: user.groups.unwrap_or_default() }))
    }
}
