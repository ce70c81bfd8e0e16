//! The command line, and the wiring of all rooms.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use crate::config::{Flags, arguments, read_flags, with_pflag_names};

mod check;
mod cleanup;
mod cluster_dns;
mod contention;
mod credentials;
mod images;
mod join;
mod kube_proxy;
mod logging;
mod memory;
mod network;
mod preflight;
mod proxy;
mod reload;
mod reservations;
mod reset;
mod run;
mod service;
mod spans;
mod standalone;
mod status;
mod systemd;
mod unit;
mod users;
mod wiring;

/// Ends the process with this code when it was called in a wrong way, as clap does.
const USAGE: u8 = 2;

const ABOUT: &str = "A Kubernetes node in one daemon: the work of kubelet and of kube-proxy";

const RUN_ABOUT: &str = "Run the node agent";

const RUN_DETAILS: &str = "\
Takes kubelet's own configuration file and flags. Flags override drop-ins, drop-ins override the file, the file
overrides defaults. Flags that stand for a field of the configuration are listed by --help and not by -h; flags that
kubelet no longer has are accepted and ignored with a warning.

On SIGTERM the agent ends and leaves containers, volumes and service rules as they are; the next one takes them over.";

const CLEANUP_ABOUT: &str =
    "Remove the service rules that the agent leaves in the kernel when it ends, and those that kube-proxy has left";

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    memory::keep_little();
    let mut arguments = with_pflag_names(std::env::args());
    let program = arguments.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default().to_owned();
    let as_kubelet = program == "kubelet";
    if program == "kube-proxy" {
        arguments.insert(1, program);
    }
    let matches = match command(as_kubelet).try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => error.exit(),
    };
    let (name, matches) = match matches.subcommand() {
        Some((name, matches)) => (name, matches),
        None => ("run", &matches),
    };
    match name {
        "cleanup" => report(cleanup::cleanup()),
        "service" => report(service::run(matches)),
        "join" => report(join::run(matches)),
        "reset" => report(reset::run(matches)),
        "status" => report(status::run(matches)),
        "check" => report(check::run(matches)),
        "kube-proxy" => report(kube_proxy::run(matches)),
        _ => run(matches, as_kubelet),
    }
}

fn run(matches: &ArgMatches, as_kubelet: bool) -> ExitCode {
    let flags: Flags = match read_flags(matches) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("stoker: {error}");
            return ExitCode::from(USAGE);
        }
    };
    report(run::run(flags, as_kubelet))
}

fn report(result: Result<(), impl std::error::Error>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if !text.contains(&inner.to_string()) {
            text = format!("{text}: {inner}");
        }
        cause = inner.source();
    }
    eprintln!("stoker: {text}");
    ExitCode::FAILURE
}

fn command(as_kubelet: bool) -> Command {
    if as_kubelet {
        // The version reads as kubelet's, since installers look for it.
        return Command::new("Kubernetes").bin_name("kubelet").version("v1.36.2").about(ABOUT).args(arguments());
    }
    Command::new("stoker")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("run").about(RUN_ABOUT).after_help(RUN_DETAILS).args(arguments()))
        .subcommand(join::command())
        .subcommand(check::command())
        .subcommand(reset::command())
        .subcommand(status::command())
        .subcommand(service::command())
        .subcommand(kube_proxy::command())
        .subcommand(Command::new("cleanup").about(CLEANUP_ABOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command(true).debug_assert();
        command(false).debug_assert();
    }

    #[test]
    fn kubelets_own_calls_are_understood() {
        // A22.2b, A22.2c, A22.2d
        let line = "kubelet --bootstrap-kubeconfig=/b --kubeconfig /k --config=/c --container_runtime=remote \
                    --pod-infra-container-image=x --fail-swap-on=false --rotate-certificates --oom-score-adj -5 \
                    --cluster-dns=10.0.0.10,10.0.0.11 --cluster-dns 10.0.0.12 --node-labels=a=b --node-labels=c=d \
                    --register-with-taints=k=v:NoSchedule,only:NoExecute --eviction-hard=memory.available<1Gi \
                    --kube-reserved=cpu=1,memory=2Gi --feature-gates=A=true,B=false --network-plugin=cni -v 4 --root-dir=/r";
        let arguments = with_pflag_names(line.split_whitespace().map(str::to_owned));
        let flags = read_flags(&command(true).try_get_matches_from(arguments).expect("accepted")).expect("read");
        assert_eq!(flags.kubeconfig.as_deref(), Some("/k".as_ref()));
        assert_eq!(flags.root_dir, std::path::Path::new("/r"));
        assert_eq!(flags.cert_dir, std::path::Path::new("/r/pki"));
        assert_eq!((flags.node_labels.as_str(), flags.verbosity), ("a=b,c=d", 4));
        assert_eq!(flags.warnings.len(), 3, "{:?}", flags.warnings);
        let expected = serde_json::json!({
            "failSwapOn": false,
            "rotateCertificates": true,
            "oomScoreAdj": -5,
            "clusterDNS": ["10.0.0.10", "10.0.0.11", "10.0.0.12"],
            "registerWithTaints": [
                { "key": "k", "value": "v", "effect": "NoSchedule" }, { "key": "only", "effect": "NoExecute" },
            ],
            "evictionHard": { "memory.available": "1Gi" },
            "kubeReserved": { "cpu": "1", "memory": "2Gi" },
            "featureGates": { "A": true, "B": false },
        });
        assert_eq!(flags.overrides, expected);
    }

    #[test]
    fn wrong_values_name_the_flag() {
        for (argument, flag) in [
            ("--max-pods=many", "--max-pods"),
            ("--fail-swap-on=maybe", "--fail-swap-on"),
            ("--register-with-taints=a", "--register-with-taints"),
            ("--kube-reserved=cpu", "--kube-reserved"),
        ] {
            let matches = command(false).try_get_matches_from(["stoker", "run", argument]).expect("accepted");
            let (_, matches) = matches.subcommand().expect("run");
            let error = read_flags(matches).expect_err(argument).to_string();
            assert!(error.starts_with(flag), "{error}");
        }
    }

    #[test]
    fn the_version_depends_on_the_name() {
        let version = |as_kubelet, program| {
            command(as_kubelet).try_get_matches_from([program, "--version"]).expect_err("ends").to_string()
        };
        assert_eq!(version(true, "kubelet"), "Kubernetes v1.36.2\n");
        assert_eq!(version(false, "stoker"), concat!("stoker ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}
