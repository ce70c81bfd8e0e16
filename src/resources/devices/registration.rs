//! Takes the registrations of device plugins: on the agent's own socket, and of those that put one into `plugins_registry`.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use stoker_model::handle::{FoundPlugin, PluginKind};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::Devices;
use super::proto::registration_server::{Registration, RegistrationServer};
use super::proto::{Empty, RegisterRequest};

/// The one version there is.
const VERSION: &str = "v1beta1";
/// The socket that plugins know.
const SOCKET: &str = "kubelet.sock";

/// Wipes the sockets of former plugins, which makes those that live register again, and serves (A15.5).
pub(super) fn serve(devices: Devices) -> std::io::Result<()> {
    let dir = devices.0.dir.clone();
    std::fs::create_dir_all(&dir)?;
    for entry in std::fs::read_dir(&dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "an old socket of a device plugin stays");
        }
    }
    let listener = UnixListenerStream::new(UnixListener::bind(dir.join(SOCKET))?);
    let stop = devices.0.stop.clone();
    let server = Server::builder().add_service(RegistrationServer::new(devices));
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming_shutdown(listener, stop.cancelled_owned()).await {
            tracing::error!(%error, "device plugins cannot register any more: start the agent again");
        }
    });
    Ok(())
}

fn check(version_fits: bool, version: &str, resource: &str) -> Result<(), String> {
    if !version_fits {
        return Err(format!(
            "requested API version \"{version}\" is not supported by kubelet. Supported version is [\"{VERSION}\"]"
        ));
    }
    if !is_extended(resource) {
        return Err(format!("the ResourceName \"{resource}\" is invalid"));
    }
    Ok(())
}

/// Whether a resource is one that devices may have: with a domain, and none of Kubernetes' own.
fn is_extended(resource: &str) -> bool {
    let Some((domain, name)) = resource.split_once('/') else { return false };
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let ends_well = |text: &str| alphanumeric(text.chars().next()) && alphanumeric(text.chars().next_back());
    let name_fits = name.len() <= 63
        && ends_well(name)
        && name.chars().all(|c| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c));
    let label_fits = |label: &str| {
        ends_well(label) && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let ours = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || resource.starts_with("requests.");
    !ours && name_fits && domain.len() <= 244 && domain.split('.').all(label_fits)
}

#[tonic::async_trait]
impl Registration for Devices {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let asked = request.into_inner();
        check(asked.version == VERSION, &asked.version, &asked.resource_name).map_err(Status::unknown)?;
        // A name beside our socket, nothing elsewhere.
        let socket = self.0.dir.join(Path::new(&asked.endpoint).file_name().unwrap_or_default());
        match Self::register(self, &asked.resource_name, &socket).await {
            Ok(()) => Ok(Response::new(Empty {})),
            Err(error) => {
                tracing::warn!(resource = asked.resource_name, error, "device plugin not registered");
                Err(Status::unknown(error))
            }
        }
    }
}

#[async_trait::async_trait]
impl PluginKind for Devices {
    fn kind(&self) -> &'static str {
        "DevicePlugin"
    }

    async fn found(&self, plugin: &FoundPlugin) -> Result<(), String> {
        let fits = plugin.versions.iter().any(|version| version == VERSION);
        if !fits {
            return Err(format!(
                "manager version, {VERSION}, is not among plugin supported versions [{}]",
                plugin.versions.join(" ")
            ));
        }
        check(true, VERSION, &plugin.name).map_err(|_| {
            format!("invalid name of device plugin socket: the ResourceName \"{}\" is invalid", plugin.name)
        })?;
        self.register(&plugin.name, &plugin.endpoint).await
    }

    async fn lost(&self, name: &str, _: &Path) {
        self.gone(name, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_domain_that_is_not_kubernetes_own() {
        // A15.5
        for good in ["example.com/gpu", "a/b", "vendor.example.com/A_b.c"] {
            assert!(is_extended(good), "{good}");
        }
        for bad in
            ["gpu", "cpu", "kubernetes.io/gpu", "x.kubernetes.io/y", "requests.a.b/c", "Example.com/gpu", "a/", "a/-"]
        {
            assert!(!is_extended(bad), "{bad}");
        }
        assert_eq!(
            check(false, "v1", "a/b").unwrap_err(),
            "requested API version \"v1\" is not supported by kubelet. Supported version is [\"v1beta1\"]"
        );
        assert_eq!(check(true, VERSION, "gpu").unwrap_err(), "the ResourceName \"gpu\" is invalid");
    }
}
