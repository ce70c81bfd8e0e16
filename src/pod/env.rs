//! The environment of a container, and `$(VAR)` in its command and arguments (A8).

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, FileKeySelector, Pod};
use stoker_model::handle::{NodeSnapshot, ObjectApi, ServiceLinks};
use stoker_model::pod::PodRef;

use super::env_file;
use super::sources::is_static;
use crate::volume::fields;

/// Why an environment cannot be made: the text of `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct EnvError(String);

/// Variables in the order in which they were first defined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment(Vec<(String, String)>);

impl Environment {
    /// The value of a variable.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Replaces `$(VAR)`, and `$$` by `$`; what is not defined stays as it is (A8.2).
    pub(super) fn expand(&self, text: &str) -> String {
        stoker_model::expand::expand(text, |name| self.get(name))
    }

    #[cfg(test)]
    pub(super) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// The names that a text refers to and that have no value, sorted (A9.14).
    pub(super) fn missing(&self, text: &str) -> Vec<String> {
        let (mut found, mut rest) = (std::collections::BTreeSet::new(), text);
        while let Some(place) = rest.find('$') {
            rest = &rest[place + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                rest = after;
            } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
                if self.get(name).is_none_or(str::is_empty) {
                    found.insert(name.to_owned());
                }
                rest = after;
            }
        }
        found.into_iter().collect()
    }

    /// Names and values.
    pub(super) fn into_vec(self) -> Vec<(String, String)> {
        self.0
    }
}

/// Where the values of an environment come from.
pub(super) struct EnvSources<'a> {
    pub(super) pod: &'a Pod,
    pub(super) node: &'a NodeSnapshot,
    /// The pod's addresses, as the runtime tells them.
    pub(super) pod_ips: &'a [String],
    pub(super) objects: &'a dyn ObjectApi,
    pub(super) services: &'a dyn ServiceLinks,
    /// The directory with the pod's emptyDir volumes.
    pub(super) volumes: &'a Path,
}

impl EnvSources<'_> {
    /// The environment of one container: `envFrom`, then services where nothing is defined yet, then `env` (A8.1).
    pub(super) async fn environment(&self, container: &Container) -> Result<Environment, EnvError> {
        let mut environment = Environment::default();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            let content = if let Some(from) = &source.config_map_ref {
                self.config_map(&from.name, from.optional.unwrap_or_default()).await?
            } else if let Some(from) = &source.secret_ref {
                self.secret(&from.name, from.optional.unwrap_or_default()).await?
            } else {
                None
            };
            for (key, value) in content.into_iter().flatten() {
                environment.set(&format!("{prefix}{key}"), value);
            }
        }
        let links = self.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let services = match self.services.environment(self.namespace(), links) {
            Some(services) => services,
            // The API server may be one of them (A8.6).
            None if is_static(self.pod) => BTreeMap::new(),
            None => {
                let text = "services have not yet been read at least once, cannot construct envvars";
                return Err(EnvError(text.to_owned()));
            }
        };
        for (name, value) in services {
            if environment.get(&name).is_none() {
                environment.set(&name, value);
            }
        }
        for variable in container.env.iter().flatten() {
            if let Some(value) = self.value(container, variable, &environment).await? {
                environment.set(&variable.name, value);
            }
        }
        Ok(environment)
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The value of one variable; `None`: an optional source has none.
    async fn value(
        &self,
        container: &Container,
        variable: &EnvVar,
        so_far: &Environment,
    ) -> Result<Option<String>, EnvError> {
        match &variable.value_from {
            None => Ok(Some(so_far.expand(variable.value.as_deref().unwrap_or_default()))),
            Some(source) => self.value_from(container, source).await,
        }
    }

    async fn value_from(&self, container: &Container, source: &EnvVarSource) -> Result<Option<String>, EnvError> {
        let namespace = self.namespace();
        if let Some(from) = &source.file_key_ref {
            return self.of_file(from);
        }
        if let Some(field) = &source.field_ref {
            return self.field(&field.field_path).map(Some);
        }
        if let Some(resource) = &source.resource_field_ref {
            let value = fields::resource(self.pod, Some(container), resource, &self.node.allocatable);
            return value.map(Some).map_err(|e| EnvError(e.to_string()));
        }
        let (kind, name, key, optional, content) = if let Some(from) = &source.config_map_key_ref {
            let optional = from.optional.unwrap_or_default();
            ("ConfigMap", &from.name, &from.key, optional, self.config_map(&from.name, optional).await?)
        } else if let Some(from) = &source.secret_key_ref {
            let optional = from.optional.unwrap_or_default();
            ("Secret", &from.name, &from.key, optional, self.secret(&from.name, optional).await?)
        } else {
            return Err(EnvError("this source of an environment variable is not supported on this node".into()));
        };
        match content.and_then(|mut content| content.remove(key)) {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None => Err(EnvError(format!("couldn't find key {key} in {kind} {namespace}/{name}"))),
        }
    }

    /// A variable of a file that another container of the pod wrote (A8.7).
    fn of_file(&self, from: &FileKeySelector) -> Result<Option<String>, EnvError> {
        let spec = self.pod.spec.as_ref();
        let mut volumes = spec.into_iter().flat_map(|s| s.volumes.iter().flatten());
        if !volumes.any(|v| v.name == from.volume_name && v.empty_dir.is_some()) {
            return Err(EnvError(format!("cannot find the volume \"{}\" referenced by FileKeyRef", from.volume_name)));
        }
        let volume = self.volumes.join(&from.volume_name);
        let value = env_file::read(&volume, &from.path, &from.key).map_err(|problem| {
            tracing::info!(pod = %PodRef::of(self.pod), problem, "a file with variables cannot be used");
            EnvError("couldn't parse env file".to_owned())
        })?;
        match value.as_str() {
            "" if from.optional.unwrap_or_default() => Ok(None),
            "" => {
                let file = volume.join(&from.path);
                let text =
                    format!("environment variable key \"{}\" not found in file \"{}\"", from.key, file.display());
                Err(EnvError(text))
            }
            _ => Ok(Some(value)),
        }
    }

    fn field(&self, path: &str) -> Result<String, EnvError> {
        let host_ips = || self.node.ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        Ok(match path {
            "status.hostIP" => host_ips().into_iter().next().unwrap_or_default(),
            "status.hostIPs" => host_ips().join(","),
            "status.podIP" => self.pod_ips().into_iter().next().unwrap_or_default(),
            "status.podIPs" => self.pod_ips().join(","),
            "spec.nodeName" => self.node.name.clone(),
            _ => fields::field(self.pod, path).map_err(|e| EnvError(e.to_string()))?,
        })
    }

    /// In the order in which the status shows them: those of the node's primary family first (A2.11).
    fn pod_ips(&self) -> Vec<String> {
        let primary_is_v6 = self.node.ips.first().is_some_and(std::net::IpAddr::is_ipv6);
        let mut ips = self.pod_ips.to_vec();
        ips.sort_by_key(|ip| ip.contains(':') != primary_is_v6);
        ips
    }

    async fn config_map(&self, name: &str, optional: bool) -> Result<Option<BTreeMap<String, String>>, EnvError> {
        let object = self.objects.config_map(self.namespace(), name).await.map_err(|e| EnvError(e.to_string()))?;
        match object {
            Some(object) => Ok(Some(object.data.clone().unwrap_or_default())),
            None if optional => Ok(None),
            None => Err(EnvError(format!("configmap \"{name}\" not found"))),
        }
    }

    async fn secret(&self, name: &str, optional: bool) -> Result<Option<BTreeMap<String, String>>, EnvError> {
        let object = self.objects.secret(self.namespace(), name).await.map_err(|e| EnvError(e.to_string()))?;
        match object {
            Some(object) => {
                let text = |v: &k8s_openapi::ByteString| String::from_utf8_lossy(&v.0).into_owned();
                Ok(Some(object.data.iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()))
            }
            None if optional => Ok(None),
            None => Err(EnvError(format!("secret \"{name}\" not found"))),
        }
    }
}

#[cfg(test)]
#[path = "env/tests.rs"]
mod tests;
