//! Asks the API server what a user may do on this node.

use async_trait::async_trait;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use serde_json::json;
use stoker_model::handle::{ApiError, Authorizer, UserInfo};

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
