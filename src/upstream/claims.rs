//! Claims of dynamic resources, and what drivers of this node have published (A15.8).

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::json;
use stoker_model::handle::{ApiError, ClaimApi};

use super::client::{ApiServer, query_value};

const GROUP: &str = "/apis/resource.k8s.io/v1";

/// The API server's side of [`ClaimApi`].
#[derive(Clone, Debug)]
pub struct ClaimReader {
    api: ApiServer,
    node: String,
}

impl ClaimReader {
    /// For the node of that name.
    pub const fn new(api: ApiServer, node: String) -> Self {
        Self { api, node }
    }
}

#[async_trait]
impl ClaimApi for ClaimReader {
    async fn resource_claim(&self, namespace: &str, name: &str) -> Result<Option<ResourceClaim>, ApiError> {
        let path = format!("{GROUP}/namespaces/{namespace}/resourceclaims/{}", query_value(name));
        match self.api.get(&path).await {
            Ok(claim) => Ok(Some(claim)),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn remove_slices(&self, driver: Option<&str>) -> Result<(), ApiError> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        match self.api.delete(&slices(&self.node, driver), &options).await {
            // A cluster without dynamic resources has none.
            Err(ApiError::NotFound(_)) => Ok(()),
            other => other,
        }
    }
}

/// The slices of one node, perhaps of one driver.
fn slices(node: &str, driver: Option<&str>) -> String {
    let of_driver = driver.map(|driver| format!("spec.driver={driver},")).unwrap_or_default();
    format!("{GROUP}/resourceslices?fieldSelector={}", query_value(&format!("{of_driver}spec.nodeName={node}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slices_of_this_node_go() {
        // A15.8
        let all = "/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3Dn1";
        assert_eq!(slices("n1", None), all);
        let one =
            "/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.driver%3Da.example.com%2Cspec.nodeName%3Dn1";
        assert_eq!(slices("n1", Some("a.example.com")), one);
    }
}
