//! `stoker service explain`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use stoker_model::handle::{ApiError, EventSink, EventSubject, EventType};
use stoker_model::service::NamespacedName;
use tokio::sync::watch;

use crate::config::{Credentials, KubeconfigError, read_kubeconfig};
use crate::node::{MachineError, node_name};
use crate::service::explain::explain;
use crate::service::nftables::{Kernel, NftError};
use crate::service::{Problems, ServiceConfig, Troubled, ipvs};
use crate::upstream::{self, ApiServer, ConnectError};

/// Where kubeadm puts the node's kubeconfig.
const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";

/// Why a Service could not be explained.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExplainError {
    #[error("{0:?} is no Service: write NAMESPACE/NAME")]
    Name(String),
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error("there is no kubeconfig at {}: name one with --kubeconfig", .0.display())]
    NoKubeconfig(PathBuf),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("the API server did not answer: {0}")]
    Api(#[from] ApiError),
    #[error(transparent)]
    Kernel(#[from] NftError),
    #[error(transparent)]
    Ipvs(#[from] ipvs::IpvsError),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("the kernel differs from what it should hold; if it stays so, look at the agent's log")]
    Differs,
}

/// The command.
pub(super) fn command() -> Command {
    let explain = Command::new("explain")
        .about("Print the way of a packet to each address of a Service, and why which endpoint gets no traffic")
        .arg(Arg::new("service").value_name("NAMESPACE/NAME").required(true))
        .arg(
            Arg::new("verify")
                .long("verify")
                .action(ArgAction::SetTrue)
                .help("Compare with this machine's nftables, as root; ends with 1 where it differs"),
        )
        .arg(Arg::new("output").short('o').long("output").value_parser(["text", "json"]).default_value("text"))
        .arg(Arg::new("kubeconfig").long("kubeconfig").value_name("FILE").default_value(KUBECONFIG))
        .arg(
            Arg::new("node")
                .long("hostname-override")
                .value_name("NAME")
                .help("The node whose view to print instead of this machine's"),
        );
    Command::new("service")
        .about("What the agent does with Services")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(explain)
}

/// Runs `service explain`.
pub(super) fn run(matches: &ArgMatches) -> Result<(), ExplainError> {
    let (_, matches) = matches.subcommand().expect("clap asks for a subcommand");
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let service = text("service").unwrap_or_default();
    let name = match service.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            NamespacedName { namespace: namespace.into(), name: name.into() }
        }
        _ => return Err(ExplainError::Name(service.to_owned())),
    };
    let (node, _) = node_name(text("node"))?;
    // The first provider wins; nobody else sets one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kubeconfig = Path::new(text("kubeconfig").unwrap_or(KUBECONFIG));
    let (service, slices, node) = runtime.block_on(async {
        if !kubeconfig.exists() {
            return Err(ExplainError::NoKubeconfig(kubeconfig.to_owned()));
        }
        let api = match read_kubeconfig(Some(kubeconfig), None, |_| true).await? {
            Credentials::Cluster(config) | Credentials::Bootstrap(config) => ApiServer::new(&config)?,
            Credentials::Standalone => return Err(ExplainError::NoKubeconfig(kubeconfig.to_owned())),
        };
        let (service, slices) = upstream::fetch_service(&api, &name).await?;
        let node = upstream::fetch_topology(&api, &node).await?;
        Ok((service, slices, node))
    })?;
    let mut explanation = explain(&service, slices.iter(), &node);
    if matches.get_flag("verify") {
        let mut kernel = Kernel::open(ServiceConfig::default())?;
        if kernel.stands_beside_ipvs()? {
            explanation.verify_ipvs(kernel.read()?, &ipvs::read()?);
        } else {
            explanation.verify(kernel.read()?);
        }
    }
    if text("output") == Some("json") {
        println!("{}", serde_json::to_string_pretty(&explanation).expect("names, texts and numbers"));
    } else {
        print!("{explanation}");
    }
    if explanation.is_as_expected() { Ok(()) } else { Err(ExplainError::Differs) }
}

/// Publishes an event on a Service for each thing of it that cannot be done.
pub(super) async fn tell_problems(mut problems: watch::Receiver<Problems>, events: Arc<dyn EventSink>) {
    let mut told = Problems::default();
    while problems.changed().await.is_ok() {
        let now = problems.borrow_and_update().clone();
        for (name, Troubled { uid, problems }) in now.iter() {
            let known = told.get(name).map_or(&[][..], |troubled| troubled.problems.as_slice());
            for problem in problems.iter().filter(|problem| !known.contains(problem)) {
                let subject = EventSubject::Service { service: name.clone(), uid: uid.clone() };
                events.publish(subject, EventType::Warning, "ServiceNotProgrammed", problem.to_string());
            }
        }
        told = now;
    }
    // The data path ended, and says so itself.
    std::future::pending().await
}
