//! `stoker check`: whether this machine can be a node, and what to do where it cannot.

mod facts;
mod findings;

use clap::{Arg, ArgMatches, Command};

use self::facts::Facts;
use self::findings::{Finding, Grade, findings};
use crate::config::{ConfigError, load, load_stoker_config};

/// Why the machine cannot be a node.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("{0} findings keep this machine from being a node")]
    Failed(usize),
}

/// The command.
pub(super) fn command() -> Command {
    let file = |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("FILE").help(help);
    Command::new("check")
        .about("Check whether this machine can be a node; every finding says how to put it right")
        .after_help("Ends with 1 when something keeps the agent from working; warnings alone end with 0.")
        .arg(file("config", "KubeletConfiguration [default: /etc/stoker/kubelet.yaml where it exists]"))
        .arg(file("stoker-config", "StokerConfiguration [default: /etc/stoker/stoker.yaml where it exists]"))
        .arg(file(
            "kubeconfig",
            "Compares the clock with that of its API server [default: /etc/stoker/node.kubeconfig where it exists]",
        ))
        .arg(Arg::new("root-dir").long("root-dir").value_name("DIR").default_value("/var/lib/kubelet"))
        .arg(
            Arg::new("container-runtime-endpoint")
                .long("container-runtime-endpoint")
                .value_name("URL")
                .help("[default: as the configuration says]"),
        )
        .arg(Arg::new("output").short('o').long("output").value_parser(["text", "json"]).default_value("text"))
}

/// Looks at everything, prints, and fails when something is amiss.
pub(super) fn run(matches: &ArgMatches) -> Result<(), CheckError> {
    let path = |name: &str, default: &str| {
        let said = matches.get_one::<String>(name).map(std::path::PathBuf::from);
        said.or_else(|| Some(std::path::PathBuf::from(default)).filter(|path| path.exists()))
    };
    let file = path("config", "/etc/stoker/kubelet.yaml");
    let said = matches.get_one::<String>("container-runtime-endpoint");
    let flags = said
        .map_or_else(|| serde_json::json!({}), |endpoint| serde_json::json!({ "containerRuntimeEndpoint": endpoint }));
    let loaded = load(file.as_deref(), None, &flags, false)?;
    let stoker = load_stoker_config(path("stoker-config", "/etc/stoker/stoker.yaml").as_deref())?;
    let kubeconfig = path("kubeconfig", "/etc/stoker/node.kubeconfig");
    let root = matches.get_one::<String>("root-dir").cloned().unwrap_or_default();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let facts = runtime.block_on(Facts::gather(&loaded.kubelet, &stoker, kubeconfig.as_deref(), root.as_ref()));
    let found = findings(&facts, &loaded.kubelet, &stoker);
    if matches.get_one::<String>("output").is_some_and(|output| output == "json") {
        println!("{:#}", serde_json::json!({ "findings": found }));
    } else {
        found.iter().for_each(print);
    }
    match found.iter().filter(|finding| finding.grade == Grade::Error).count() {
        0 => Ok(()),
        errors => Err(CheckError::Failed(errors)),
    }
}

fn print(finding: &Finding) {
    let grade = match finding.grade {
        Grade::Ok => "ok",
        Grade::Warning => "warning",
        Grade::Error => "error",
    };
    println!("{grade:<8} {:<12} {}", finding.subject, finding.message);
    if let Some(fix) = &finding.fix {
        println!("{:<21} fix: {fix}", "");
    }
}
