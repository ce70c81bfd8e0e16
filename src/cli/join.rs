//! `stoker join`: makes this machine a node of a cluster that somebody else made, with nothing but its address, a token and the hash of
//! its CA (C6.4).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::unit;
use crate::node::{MachineError, node_name};
use crate::upstream::{
    DiscoveryError, FoundCluster, Pin, Token, connect_with_token, discover, is_taken, kubelet_configuration,
};

/// Where the packages keep what they are configured with.
pub(super) const DIRECTORY: &str = "/etc/stoker";
/// What join writes there.
pub(super) const CA: &str = "ca.crt";
pub(super) const BOOTSTRAP: &str = "bootstrap.kubeconfig";
pub(super) const KUBECONFIG: &str = "node.kubeconfig";
pub(super) const CONFIGURATION: &str = "kubelet.yaml";
/// The first line of a configuration that join has written.
pub(super) const WRITTEN: &str = "# Written by stoker join, from the cluster's kubelet-config.\n";
/// What the package had in the configuration's place.
pub(super) const CONFIGURATION_BEFORE: &str = "kubelet.yaml.before-join";

const DEFAULT_RUNTIME: &str = "unix:///run/containerd/containerd.sock";
/// How long the certificate may take once the agent runs (C6.4).
const PATIENCE: Duration = Duration::from_secs(300);

/// Why the machine has not joined.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("stoker join must be started as root: it writes credentials and starts the agent")]
    NotRoot,
    #[error(
        "without --ca-hash nobody but the token vouches for the cluster: give the hash, or say --unsafe-skip-ca-verification"
    )]
    NoHash,
    #[error("this machine has joined already, as {0} shows: stoker reset undoes it")]
    Joined(PathBuf),
    #[error("a node {0} is Ready in this cluster: remove it there, or give this machine another name with --node-name")]
    Taken(String),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Name(#[from] MachineError),
    #[error("the cluster's kubelet-config is no KubeletConfiguration: {0}")]
    Configuration(String),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Unit(#[from] unit::UnitError),
    #[error(
        "the agent runs, and has no certificate after {0:?}: journalctl -u stoker tells why; an administrator may have to \
         approve what kubectl get csr shows"
    )]
    NoCertificate(Duration),
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

/// The command.
pub(super) fn command() -> Command {
    Command::new("join")
        .about("Make this machine a node of a cluster")
        .after_help(
            "Reads kube-public/cluster-info of the cluster, checks its signature with the token and the key of its CA against the hash, \
             writes the CA, a bootstrap kubeconfig and the cluster's kubelet configuration to /etc/stoker, and starts the agent, which \
             asks for its certificate. What to give is what `kubeadm token create --print-join-command` prints.",
        )
        .arg(Arg::new("server").value_name("https://HOST:6443").required(true))
        .arg(Arg::new("token").long("token").value_name("TOKEN").required(true).help("A bootstrap token"))
        .arg(
            Arg::new("ca-hash")
                .long("ca-hash")
                .visible_alias("discovery-token-ca-cert-hash")
                .value_name("sha256:HEX")
                .action(ArgAction::Append)
                .help("SHA-256 of the public key of the cluster's CA; several are allowed"),
        )
        .arg(
            Arg::new("unsafe")
                .long("unsafe-skip-ca-verification")
                .action(ArgAction::SetTrue)
                .help("Trust whoever knows the token's secret"),
        )
        .arg(directory_argument())
        .arg(Arg::new("node-name").long("node-name").value_name("NAME").help("[default: the host's name in lower case]"))
        .arg(
            Arg::new("no-start")
                .long("no-start")
                .action(ArgAction::SetTrue)
                .help("Only write the files; the agent is started by other means"),
        )
}

/// Where the agent's configuration lies.
pub(super) fn directory_argument() -> Arg {
    Arg::new("directory")
        .long("directory")
        .value_name("DIR")
        .default_value(DIRECTORY)
        .help("Where the agent's files lie")
}

/// Joins.
pub(super) fn run(matches: &ArgMatches) -> Result<(), JoinError> {
    if !rustix::process::geteuid().is_root() {
        return Err(JoinError::NotRoot);
    }
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let token: Token = text("token").parse()?;
    let pins = matches.get_many::<String>("ca-hash").into_iter().flatten().map(|hash| hash.parse::<Pin>());
    let pins = pins.collect::<Result<Vec<_>, _>>()?;
    if pins.is_empty() && !matches.get_flag("unsafe") {
        return Err(JoinError::NoHash);
    }
    let directory = PathBuf::from(text("directory"));
    let kubeconfig = directory.join(KUBECONFIG);
    if fs::symlink_metadata(&kubeconfig).is_ok() {
        return Err(JoinError::Joined(kubeconfig));
    }
    let said = matches.get_one::<String>("node-name").map(String::as_str);
    let (name, _) = node_name(said)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(JoinError::Start)?;
    let (cluster, configuration) = runtime.block_on(async {
        let cluster = discover(&text("server"), &token, &pins).await?;
        println!("found the cluster at {}", cluster.server);
        let api = connect_with_token(&cluster, &token)?;
        if is_taken(&api, &name).await? {
            return Err(JoinError::Taken(name.clone()));
        }
        Ok((cluster, kubelet_configuration(&api).await?))
    })?;
    write_files(&directory, &cluster, &token, configuration.as_deref())?;
    if matches.get_flag("no-start") || !unit::has_systemd() {
        let path = |file| directory.join(file).display().to_string();
        println!(
            "start the agent: stoker run --config {} --kubeconfig {} --bootstrap-kubeconfig {}{}",
            path(CONFIGURATION),
            path(KUBECONFIG),
            path(BOOTSTRAP),
            said.map(|name| format!(" --hostname-override {name}")).unwrap_or_default()
        );
        return Ok(());
    }
    if let Some(name) = said {
        unit::set_node_name(name)?;
    }
    unit::enable_and_start()?;
    println!("the agent runs, and asks for its certificate");
    if !appears(&kubeconfig) {
        return Err(JoinError::NoCertificate(PATIENCE));
    }
    // The token has done its work; what is left of it on the disk helps nobody but a thief.
    remove(&directory.join(BOOTSTRAP))?;
    println!("{name} has joined: kubectl get nodes shows it");
    Ok(())
}

fn appears(path: &Path) -> bool {
    let pause = Duration::from_millis(200);
    for _ in 0..PATIENCE.as_millis() / pause.as_millis() {
        if path.exists() {
            return true;
        }
        std::thread::sleep(pause);
    }
    false
}

fn write_files(
    directory: &Path,
    cluster: &FoundCluster,
    token: &Token,
    configuration: Option<&str>,
) -> Result<(), JoinError> {
    fs::create_dir_all(directory).map_err(|source| JoinError::Write { path: directory.to_owned(), source })?;
    let ca = directory.join(CA);
    let path = directory.join(CONFIGURATION);
    // Before anything is written: it may be unusable.
    let configuration = configuration.map(|text| adapted(text, &ca, Path::exists)).transpose()?;
    write(&ca, &cluster.ca, 0o644)?;
    write(&directory.join(BOOTSTRAP), &bootstrap(cluster, &ca, token), 0o600)?;
    match configuration {
        Some(text) => {
            let before = directory.join(CONFIGURATION_BEFORE);
            if path.exists() && !before.exists() && !is_ours(&path) {
                fs::copy(&path, &before).map_err(|source| JoinError::Write { path: before.clone(), source })?;
            }
            write(&path, &text, 0o644)
        }
        None => {
            println!("the cluster has no kubelet-config: {} stays as it is", path.display());
            Ok(())
        }
    }
}

/// Whether join has written this configuration.
pub(super) fn is_ours(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.starts_with(WRITTEN))
}

fn bootstrap(cluster: &FoundCluster, ca: &Path, token: &Token) -> String {
    let whole = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": { "server": cluster.server, "certificate-authority": ca } }],
        "users": [{ "name": "bootstrap", "user": { "token": token.bearer() } }],
        "contexts": [{ "name": "bootstrap", "context": { "cluster": "cluster", "user": "bootstrap" } }],
        "current-context": "bootstrap",
    });
    format!("{whole:#}\n")
}

/// The cluster's configuration with what only this machine knows: where the CA lies, the runtime's socket, a resolv.conf that is there.
fn adapted(text: &str, ca: &Path, exists: impl Fn(&Path) -> bool) -> Result<String, JoinError> {
    let bad = |error: serde_yaml_ng::Error| JoinError::Configuration(error.to_string());
    let mut whole: Value = serde_yaml_ng::from_str(text).map_err(bad)?;
    if whole["kind"] != "KubeletConfiguration" {
        return Err(JoinError::Configuration(format!("its kind is {}", whole["kind"])));
    }
    whole["authentication"]["x509"]["clientCAFile"] = json!(ca);
    if whole["containerRuntimeEndpoint"].as_str().unwrap_or_default().is_empty() {
        whole["containerRuntimeEndpoint"] = json!(DEFAULT_RUNTIME);
    }
    if whole["resolvConf"].as_str().is_some_and(|path| !path.is_empty() && !exists(Path::new(path))) {
        whole.as_object_mut().map(|fields| fields.remove("resolvConf"));
    }
    if whole["rotateCertificates"].is_null() {
        whole["rotateCertificates"] = json!(true);
    }
    Ok(format!("{WRITTEN}{}", serde_yaml_ng::to_string(&whole).map_err(bad)?))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), JoinError> {
    let failed = |source| JoinError::Write { path: path.to_owned(), source };
    remove(path)?;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all())).map_err(failed)
}

fn remove(path: &Path) -> Result<(), JoinError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(JoinError::Write { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_clusters_configuration_fits_this_machine() {
        // C6.4
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.96.0.10]\n\
                    resolvConf: /run/systemd/resolve/resolv.conf\nauthentication:\n  anonymous: { enabled: false }\n  x509:\n    \
                    clientCAFile: /etc/kubernetes/pki/ca.crt\ncontainerRuntimeEndpoint: ''\n";
        let ca = Path::new("/etc/stoker/ca.crt");
        let read = |text: &str| -> Value { serde_yaml_ng::from_str(text).expect("YAML") };
        let fitted = read(&adapted(text, ca, |_| false).expect("fits"));
        assert_eq!(fitted["authentication"]["x509"]["clientCAFile"], "/etc/stoker/ca.crt");
        assert_eq!(fitted["authentication"]["anonymous"]["enabled"], false);
        assert_eq!(fitted["containerRuntimeEndpoint"], DEFAULT_RUNTIME);
        assert_eq!(fitted["clusterDNS"][0], "10.96.0.10");
        assert_eq!(fitted["rotateCertificates"], true);
        assert!(fitted["resolvConf"].is_null(), "there is no such file");
        assert!(!read(&adapted(text, ca, |_| true).expect("fits"))["resolvConf"].is_null());
        for bad in ["kind: Other", "[", ""] {
            assert!(matches!(adapted(bad, ca, |_| true), Err(JoinError::Configuration(_))), "{bad}");
        }
    }

    #[test]
    fn files_are_private_where_they_must_be_and_the_packages_own_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let below = |name: &str| directory.path().join(name);
        fs::write(below(CONFIGURATION), "packaged").expect("written");
        let cluster = FoundCluster { server: "https://10.0.0.1:6443".into(), ca: "PEM".into() };
        let token: Token = "abcdef.0123456789abcdef".parse().expect("a token");
        for _ in 0..2 {
            write_files(directory.path(), &cluster, &token, Some("kind: KubeletConfiguration")).expect("written");
        }
        assert_eq!(fs::read_to_string(below(CONFIGURATION_BEFORE)).expect("kept"), "packaged");
        assert_eq!(fs::metadata(below(BOOTSTRAP)).expect("there").permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(below(BOOTSTRAP)).expect("there");
        assert!(text.contains("abcdef.0123456789abcdef") && text.contains("https://10.0.0.1:6443"), "{text}");
        assert_eq!(fs::read_to_string(below(CA)).expect("there"), "PEM");
        assert!(write_files(directory.path(), &cluster, &token, Some("kind: Pod")).is_err());
        write_files(directory.path(), &cluster, &token, None).expect("nothing of the cluster's");
    }
}
