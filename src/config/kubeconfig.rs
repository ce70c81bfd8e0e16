//! The kubeconfig: which API server, and with which credentials.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};

/// What the flags `--kubeconfig` and `--bootstrap-kubeconfig` lead to.
#[derive(Debug)]
pub enum Credentials {
    /// Neither was given: static pods only (A22.2d).
    Standalone,
    /// Connect like this.
    Cluster(Box<kube::Config>),
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// No file, and nothing to get one with.
    #[error("kubeconfig {0} does not exist: write one, or give --bootstrap-kubeconfig")]
    Missing(PathBuf),
    /// A bootstrap kubeconfig alone.
    #[error(
        "kubeconfig {kubeconfig} does not exist, and joining with {bootstrap} is not yet available: \
         write a kubeconfig with a client certificate of system:node:<name>, or a token"
    )]
    BootstrapOnly {
        /// What is missing.
        kubeconfig: PathBuf,
        /// What is there.
        bootstrap: PathBuf,
    },
    /// The file cannot be used.
    #[error("kubeconfig {path}: {source}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
}

/// Reads the credentials.
///
/// # Errors
/// When a kubeconfig was asked for and cannot be used.
pub async fn read_kubeconfig(
    kubeconfig: Option<&Path>,
    bootstrap: Option<&Path>,
) -> Result<Credentials, KubeconfigError> {
    let Some(path) = kubeconfig.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Credentials::Standalone);
    };
    if !path.exists() {
        return Err(match bootstrap.filter(|path| path.exists()) {
            Some(bootstrap) => {
                KubeconfigError::BootstrapOnly { kubeconfig: path.to_path_buf(), bootstrap: bootstrap.to_path_buf() }
            }
            None => KubeconfigError::Missing(path.to_path_buf()),
        });
    }
    let unusable = |source| KubeconfigError::Unusable { path: path.to_path_buf(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(unusable)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(unusable)?;
    Ok(Credentials::Cluster(Box::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let (kubeconfig, bootstrap) = (dir.path().join("kubelet.conf"), dir.path().join("bootstrap.conf"));
        assert!(matches!(read_kubeconfig(None, None).await, Ok(Credentials::Standalone)));
        let error = read_kubeconfig(Some(&kubeconfig), Some(&bootstrap)).await.expect_err("missing");
        assert!(error.to_string().contains("kubelet.conf does not exist"), "{error}");
        std::fs::write(&bootstrap, "").expect("written");
        let error = read_kubeconfig(Some(&kubeconfig), Some(&bootstrap)).await.expect_err("bootstrap only");
        assert!(error.to_string().contains("not yet available"), "{error}");
        std::fs::write(&kubeconfig, "clusters: 5").expect("written");
        let error = read_kubeconfig(Some(&kubeconfig), None).await.expect_err("no kubeconfig");
        assert!(error.to_string().contains("kubelet.conf"), "{error}");
    }
}
