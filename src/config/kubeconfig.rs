//! The kubeconfig: which API server, and with which credentials.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};

/// What the flags `--kubeconfig` and `--bootstrap-kubeconfig` lead to.
#[derive(Debug)]
pub enum Credentials {
    /// Neither was given: static pods only (A22.2d).
    Standalone,
    /// Connect like this.
    Cluster(Box<kube::Config>),
    /// Ask for a certificate like this, and write the kubeconfig then (A17.1).
    Bootstrap(Box<kube::Config>),
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// No file, and nothing to get one with.
    #[error("kubeconfig {0} does not exist: write one, or give --bootstrap-kubeconfig")]
    Missing(PathBuf),
    /// The file cannot be used.
    #[error("kubeconfig {path}: {source}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The file cannot be written.
    #[error("cannot write kubeconfig {path}: {reason}")]
    Unwritable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Reads the credentials. `is_valid` says whether what the kubeconfig holds can be used now; if not, a bootstrap kubeconfig is.
///
/// # Errors
/// When a kubeconfig was asked for and cannot be used.
pub async fn read_kubeconfig(
    kubeconfig: Option<&Path>,
    bootstrap: Option<&Path>,
    is_valid: impl Fn(&kube::Config) -> bool,
) -> Result<Credentials, KubeconfigError> {
    let Some(path) = kubeconfig.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Credentials::Standalone);
    };
    let bootstrap = bootstrap.filter(|path| path.exists());
    let found = if path.exists() { read(path).await } else { Err(KubeconfigError::Missing(path.to_path_buf())) };
    match (found, bootstrap) {
        (Ok(config), Some(bootstrap)) if !is_valid(&config) => {
            Ok(Credentials::Bootstrap(Box::new(read(bootstrap).await?)))
        }
        (Ok(config), _) => Ok(Credentials::Cluster(Box::new(config))),
        (Err(_), Some(bootstrap)) => Ok(Credentials::Bootstrap(Box::new(read(bootstrap).await?))),
        (Err(error), None) => Err(error),
    }
}

async fn read(path: &Path) -> Result<kube::Config, KubeconfigError> {
    let unusable = |source| KubeconfigError::Unusable { path: path.to_path_buf(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(unusable)?;
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(unusable)
}

/// Writes the kubeconfig that takes the place of a bootstrap one: the same cluster, and certificate and key from the file `pem`,
/// which is replaced when they are rotated (A17.1).
///
/// # Errors
/// When the one cannot be read or the other not be written.
pub fn write_kubeconfig(path: &Path, bootstrap: &Path, pem: &Path) -> Result<(), KubeconfigError> {
    let unusable = |source| KubeconfigError::Unusable { path: bootstrap.to_path_buf(), source: Box::new(source) };
    let unwritable = |reason: String| KubeconfigError::Unwritable { path: path.to_path_buf(), reason };
    let file = Kubeconfig::read_from(bootstrap).map_err(unusable)?;
    let context = file.contexts.iter().find(|is| file.current_context.as_deref().is_none_or(|name| name == is.name));
    let wanted = context.and_then(|is| is.context.as_ref()).map(|context| context.cluster.as_str());
    let cluster = file.clusters.iter().find(|is| wanted.is_none_or(|name| name == is.name));
    let cluster = cluster.and_then(|is| is.cluster.as_ref());
    let Some(cluster) = cluster else { return Err(unwritable(format!("{} names no cluster", bootstrap.display()))) };
    let whole = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "default-cluster", "cluster": cluster }],
        "users": [{ "name": "default-auth", "user": { "client-certificate": pem, "client-key": pem } }],
        "contexts": [{
            "name": "default-context",
            "context": { "cluster": "default-cluster", "namespace": "default", "user": "default-auth" },
        }],
        "current-context": "default-context",
    });
    let text = serde_yaml_ng::to_string(&whole).map_err(|error| unwritable(error.to_string()))?;
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|error| unwritable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "{ apiVersion: v1, kind: Config, current-context: c, \
        clusters: [{ name: other, cluster: { server: 'https://other' } }, \
                   { name: k, cluster: { server: 'https://10.0.0.1:6443', tls-server-name: api } }], \
        contexts: [{ name: c, context: { cluster: k, user: u } }], users: [{ name: u, user: { token: t } }] }";

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let (kubeconfig, bootstrap) = (dir.path().join("kubelet.conf"), dir.path().join("bootstrap.conf"));
        let read = async |valid: bool| read_kubeconfig(Some(&kubeconfig), Some(&bootstrap), |_| valid).await;
        assert!(matches!(read_kubeconfig(None, None, |_| true).await, Ok(Credentials::Standalone)));
        let error = read(true).await.expect_err("missing");
        assert!(error.to_string().contains("kubelet.conf does not exist"), "{error}");
        std::fs::write(&kubeconfig, "clusters: 5").expect("written");
        let error = read(true).await.expect_err("no kubeconfig");
        assert!(error.to_string().contains("kubelet.conf"), "{error}");
        // A17.1: what cannot be used is replaced, where there is a way to.
        std::fs::write(&bootstrap, CLUSTER).expect("written");
        assert!(matches!(read(true).await, Ok(Credentials::Bootstrap(_))));
        std::fs::write(&kubeconfig, CLUSTER).expect("written");
        assert!(matches!(read(false).await, Ok(Credentials::Bootstrap(_))));
        assert!(matches!(read(true).await, Ok(Credentials::Cluster(_))));
        std::fs::remove_file(&bootstrap).expect("removed");
        assert!(matches!(read(false).await, Ok(Credentials::Cluster(_))));
    }

    #[tokio::test]
    async fn the_new_kubeconfig_names_the_same_cluster_and_the_certificate() {
        // A17.1
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let (path, bootstrap) = (dir.path().join("etc/kubelet.conf"), dir.path().join("bootstrap.conf"));
        std::fs::write(&bootstrap, CLUSTER).expect("written");
        let pem = Path::new("/var/lib/kubelet/pki/kubelet-client-current.pem");
        write_kubeconfig(&path, &bootstrap, pem).expect("written");
        let config = super::read(&path).await.expect("read");
        assert_eq!(config.cluster_url, "https://10.0.0.1:6443/");
        assert_eq!(config.tls_server_name.as_deref(), Some("api"));
        assert_eq!(config.auth_info.client_certificate.as_deref(), pem.to_str());
        assert_eq!(config.auth_info.client_key.as_deref(), pem.to_str());
        assert!(config.auth_info.token.is_none(), "the bootstrap token is not carried on");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
