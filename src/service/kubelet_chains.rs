//! The chains of iptables that a kubelet makes for others, where iptables exists (B2.11): by `KUBE-IPTABLES-HINT` programs in
//! containers see which iptables the host uses, and `KUBE-FIREWALL` keeps strangers from services that listen on loopback.
//!
//! What is there is left alone; a look costs one process for each family.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

/// As often as kubelet looks for its canary.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The chain whose absence tells that somebody flushed all of iptables, in each table.
const CANARY: &str = "KUBE-KUBELET-CANARY";
const HINT: &str = "KUBE-IPTABLES-HINT";
const FIREWALL: &str = "KUBE-FIREWALL";
/// All that is made here, for who removes it.
pub(super) const CHAINS: [&str; 3] = [CANARY, HINT, FIREWALL];
/// Replies and what a Service leads to loopback may come, nothing else (issue 90259 of Kubernetes).
const DROP: &str = "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
    -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";

/// Why the chains are not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "{program} did not make the chains that other programs know a Kubernetes node by: {message}; set makeIPTablesUtilChains: false to do without"
)]
pub struct ChainsError {
    /// Which program.
    program: &'static str,
    /// What it said.
    message: String,
}

/// Keeps the chains there as long as it runs.
pub async fn keep() {
    let mut told = None;
    loop {
        // A panic in there would be a broken invariant of ours, and the next look finds the same.
        let result = tokio::task::spawn_blocking(ensure).await.unwrap_or(Ok(false));
        let error = result.err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|error| told.as_ref() != Some(*error)) {
            tracing::info!(%error, "others may not see that this is a Kubernetes node");
        }
        told = error;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Makes what is missing; whether anything was. A host without iptables needs none of it.
pub fn ensure() -> Result<bool, ChainsError> {
    let mut made = false;
    for (save, restore, is_v4) in
        [("iptables-save", "iptables-restore", true), ("ip6tables-save", "ip6tables-restore", false)]
    {
        let Some(saved) = save_of(save)? else { continue };
        let text = missing(&saved, is_v4);
        if !text.is_empty() {
            feed(restore, &text)?;
            made = true;
        }
    }
    Ok(made)
}

/// What `iptables-restore --noflush` makes the missing part with; empty where all is there.
fn missing(saved: &str, is_v4: bool) -> String {
    let mut table = "";
    let (mut chains, mut rules) = (Vec::new(), Vec::new());
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            chains.push((table, chain));
        } else if table == "filter" {
            rules.push(line);
        }
    }
    let mut text = String::new();
    for (table, own) in [("mangle", &[CANARY, HINT][..]), ("nat", &[CANARY]), ("filter", &[CANARY])] {
        let mut lines: Vec<String> =
            own.iter().filter(|chain| !chains.contains(&(table, **chain))).map(|chain| declared(chain)).collect();
        if table == "filter" && is_v4 {
            let drops = rules.iter().any(|rule| is_drop(rule));
            if !drops || !chains.contains(&(table, FIREWALL)) {
                // Declaring it empties it, so that there is one such rule whatever was there.
                lines.push(declared(FIREWALL));
                lines.push(DROP.to_owned());
            }
            for from in ["INPUT", "OUTPUT"] {
                if !rules.contains(&format!("-A {from} -j {FIREWALL}").as_str()) {
                    lines.push(format!("-I {from} -j {FIREWALL}"));
                }
            }
        }
        if !lines.is_empty() {
            text.push_str(&format!("*{table}\n{}\nCOMMIT\n", lines.join("\n")));
        }
    }
    text
}

fn declared(chain: &str) -> String {
    format!(":{chain} - [0:0]")
}

/// Whether it is our rule, in whatever order the program prints its parts.
fn is_drop(rule: &str) -> bool {
    rule.starts_with("-A KUBE-FIREWALL ") && rule.contains("-d 127.0.0.0/8") && rule.ends_with("-j DROP")
}

/// What is there; `None` without the program, or where the kernel has no such tables.
fn save_of(program: &'static str) -> Result<Option<String>, ChainsError> {
    match Command::new(program).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ChainsError { program, message: error.to_string() }),
    }
}

fn feed(program: &'static str, text: &str) -> Result<(), ChainsError> {
    let run = || -> io::Result<std::process::Output> {
        let mut command = Command::new(program);
        command.args(["--noflush", "--wait", "5"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A broken pipe means that it ended early; its exit status and message say why.
            let _ = stdin.write_all(text.as_bytes());
        }
        child.wait_with_output()
    };
    match run() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(ChainsError { program, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() }),
        Err(error) => Err(ChainsError { program, message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_made() {
        let nothing = missing("", true);
        for part in [
            "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT",
            "*nat\n",
            "-I INPUT",
            "-I OUTPUT",
            DROP,
        ] {
            assert!(nothing.contains(part), "{part}: {nothing}");
        }
        assert!(!missing("", false).contains(FIREWALL), "IPv6 has no such holes");
        let whole = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*nat\n:KUBE-KUBELET-CANARY - [0:0]\n\
            COMMIT\n*filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n\
            -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"x\" -m conntrack ! --ctstate DNAT -j DROP\nCOMMIT\n";
        assert_eq!(missing(whole, true), "");
        let without = whole.replace("-A OUTPUT -j KUBE-FIREWALL\n", "");
        assert_eq!(missing(&without, true), "*filter\n-I OUTPUT -j KUBE-FIREWALL\nCOMMIT\n");
    }
}
