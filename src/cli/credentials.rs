//! By which credentials the agent asks the API server: those of the kubeconfig, or a certificate that it gets and keeps itself.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::run::{RunError, Tasks, spawn};
use crate::clock::Clock;
use crate::config::{Credentials, Flags, KubeletConfig, read_kubeconfig, write_kubeconfig};
use crate::upstream::{
    ApiServer, Backoff, CertificateStore, ClientKeeper, Identity, Shown, follow_files, until_hopeless,
};

/// The task whose end means that no certificate is to be had.
pub(super) const HOPELESS: &str = "client certificate";

/// Connects as the flags say, and starts the tasks that keep the client certificate (A17.1, A17.2). `None`: standalone.
pub(super) async fn connect(
    flags: &Flags,
    kubelet: &KubeletConfig,
    node: &str,
    tasks: &mut Tasks,
) -> Result<Option<ApiServer>, RunError> {
    let store = CertificateStore::client(&flags.cert_dir);
    let valid = |config: &kube::Config| match pair(config) {
        Pair::None => true,
        Pair::Read { shown, .. } => shown.holds(Clock.now().wall),
        Pair::Unreadable(_) => false,
    };
    let credentials =
        read_kubeconfig(flags.kubeconfig.as_deref(), flags.bootstrap_kubeconfig.as_deref(), valid).await?;
    let rotate = kubelet.rotate_certificates;
    let (config, first, bootstrap) = match credentials {
        Credentials::Standalone => return Ok(None),
        Credentials::Bootstrap(config) => (config, stored(&store), true),
        Credentials::Cluster(config) => match pair(&config) {
            Pair::None => {
                if rotate {
                    tracing::warn!("rotateCertificates has no effect: the kubeconfig has no client certificate");
                }
                return Ok(Some(ApiServer::new(&config)?));
            }
            // Says which file it is.
            Pair::Unreadable(_) if !rotate => return Ok(Some(ApiServer::new(&config)?)),
            Pair::Unreadable(reason) => {
                tracing::warn!(reason, "the client certificate of the kubeconfig cannot be read");
                (config, stored(&store), false)
            }
            Pair::Read { shown, files, .. } if !rotate => {
                let Some((certificate, key)) = files else { return Ok(Some(ApiServer::new(&config)?)) };
                let (source, identity) = Identity::new(Some(*shown));
                spawn(tasks, "certificate files", follow_files(certificate, key, source));
                return Ok(Some(ApiServer::with_identity(&config, identity)?));
            }
            Pair::Read { shown, pem: (chain, key), .. } => {
                let kept = stored(&store);
                let borrowed = kept.is_none();
                // kubeadm init looks for it there before any API server could sign another, and lets the kubeconfig name it.
                if borrowed && let Err(error) = store.save(&chain, &key, Clock.now().wall) {
                    tracing::warn!(%error, "the client certificate of the kubeconfig is not kept");
                }
                let (source, identity) = Identity::new(Some(kept.unwrap_or(*shown)));
                let api = ApiServer::with_identity(&config, identity.clone())?;
                let keeper = ClientKeeper {
                    node: node.to_owned(),
                    store,
                    source,
                    api: api.clone(),
                    bootstrap: None,
                    rotate,
                    borrowed,
                };
                spawn(tasks, "certificate keeper", keeper.run());
                spawn(tasks, HOPELESS, until_hopeless(identity, ApiServer::anonymous(&config)?));
                return Ok(Some(api));
            }
        },
    };
    let (source, identity) = Identity::new(first);
    let mut own = (*config).clone();
    if bootstrap {
        own.auth_info = kube::config::AuthInfo::default();
        tracing::info!(server = %config.cluster_url, "asking for a client certificate");
        let (path, from) = (flags.kubeconfig.clone(), flags.bootstrap_kubeconfig.clone());
        spawn(tasks, "kubeconfig", keep_kubeconfig(identity.clone(), path, from, store.current()));
    }
    let api = ApiServer::with_identity(&own, identity.clone())?;
    let borrowed = false;
    let other = if bootstrap { Some(ApiServer::new(&config)?) } else { None };
    let keeper =
        ClientKeeper { node: node.to_owned(), store, source, api: api.clone(), bootstrap: other, rotate, borrowed };
    spawn(tasks, "certificate keeper", keeper.run());
    if rotate {
        spawn(tasks, HOPELESS, until_hopeless(identity, ApiServer::anonymous(&config)?));
    }
    Ok(Some(api))
}

/// What a kubeconfig says of a client certificate.
enum Pair {
    /// It has none: a token, or nothing.
    None,
    Read {
        shown: Box<Shown>,
        /// The files that it came from.
        files: Option<(PathBuf, PathBuf)>,
        /// Certificates and key.
        pem: (String, String),
    },
    Unreadable(String),
}

fn pair(config: &kube::Config) -> Pair {
    use secrecy::ExposeSecret;
    let auth = &config.auth_info;
    let (certificate, files) = match (&auth.client_certificate_data, &auth.client_certificate, &auth.client_key) {
        (Some(data), _, _) => (decoded(data), None),
        (None, Some(path), Some(key)) => (read(path.as_ref()), Some((PathBuf::from(path), PathBuf::from(key)))),
        (None, Some(path), None) => (read(path.as_ref()), None),
        (None, None, _) => return Pair::None,
    };
    let key = match (&auth.client_key_data, &auth.client_key) {
        (Some(data), _) => decoded(data.expose_secret()),
        (None, Some(path)) => read(path.as_ref()),
        (None, None) => Err("it has a client certificate and no key".to_owned()),
    };
    let read = certificate.and_then(|certificate| {
        let key = key?;
        Ok((Box::new(Shown::from_pem(&certificate, &key)?), (certificate, key)))
    });
    match read {
        Ok((shown, pem)) => Pair::Read { shown, files, pem },
        Err(reason) => Pair::Unreadable(reason),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The certificate that an earlier start was given, if it is still good.
fn stored(store: &CertificateStore) -> Option<Shown> {
    let text = fs::read_to_string(store.current()).ok()?;
    Shown::from_pem(&text, &text).ok().filter(|shown| shown.holds(Clock.now().wall))
}

/// Writes the kubeconfig as soon as there is a certificate for it; ends never.
async fn keep_kubeconfig(identity: Identity, path: Option<PathBuf>, bootstrap: Option<PathBuf>, pem: PathBuf) {
    identity.is_there().await;
    let (Some(path), Some(bootstrap)) = (path, bootstrap) else { return std::future::pending().await };
    let mut backoff = Backoff::new(std::time::Duration::from_secs(1), std::time::Duration::from_secs(60));
    while let Err(error) = write_kubeconfig(&path, &bootstrap, &pem) {
        tracing::warn!(%error, "the node has a certificate, and no kubeconfig that names it");
        tokio::time::sleep(backoff.wait()).await;
    }
    tracing::info!(path = %path.display(), "kubeconfig written");
    std::future::pending().await
}
