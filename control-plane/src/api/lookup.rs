//! Stored objects as `auth` asks for them.

use async_trait::async_trait;
use serde_json::Value;

use super::cluster::Cluster;
use super::{read, sparse};
use crate::auth::{Lookup, LookupError};
use crate::resources;

#[async_trait]
impl Lookup for Cluster {
    async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>, LookupError> {
        let fail = |message: String| LookupError { resource: resource.to_owned(), message };
        let info = resources::find(group, resource).ok_or_else(|| fail("no such kind".to_owned()))?;
        self.core.find(info, namespace.unwrap_or_default(), name).await.map_err(|error| fail(error.message))
    }

    async fn part(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        paths: &[&str],
    ) -> Result<Option<Value>, LookupError> {
        let fail = |message: String| LookupError { resource: resource.to_owned(), message };
        let info = resources::find(group, resource).ok_or_else(|| fail("no such kind".to_owned()))?;
        match read::get(self.core.store.as_ref(), info, namespace.unwrap_or_default(), name).await {
            Ok(entry) => sparse::read(&entry.value, paths).map(Some).map_err(|error| fail(error.to_string())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(fail(error.message)),
        }
    }

    async fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Result<Vec<Value>, LookupError> {
        let fail = |message: String| LookupError { resource: resource.to_owned(), message };
        let info = resources::find(group, resource).ok_or_else(|| fail("no such kind".to_owned()))?;
        self.core.all(info, namespace.unwrap_or_default()).await.map_err(|error| fail(error.message))
    }

    async fn any(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        names: &[&str],
        is_such: &(dyn for<'a> Fn(&'a Value) -> bool + Sync),
    ) -> Result<bool, LookupError> {
        let fail = |message: String| LookupError { resource: resource.to_owned(), message };
        let info = resources::find(group, resource).ok_or_else(|| fail("no such kind".to_owned()))?;
        self.core.any(info, namespace, names, is_such).await.map_err(|error| fail(error.message))
    }
}
