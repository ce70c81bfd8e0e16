//! The `nft` program, which loads the fixed part of our tables so that listings carry all types.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::NftError;
use crate::service::config::ServiceConfig;
use crate::service::frontend::Family;

/// Loads nft text. A process of its own, but only when the fixed part is not there: at the first start on a machine, after
/// an upgrade with another layout, after somebody flushed the table.
pub(super) fn run_nft(config: &ServiceConfig, family: Family, text: &str) -> Result<u32, NftError> {
    let failed = |source| NftError::NoNft { program: config.nft.display().to_string(), source };
    let mut child = Command::new(&config.nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // The kernel gives a process's first netlink socket the process ID as its port.
    let port = child.id();
    let mut input = child.stdin.take().expect("stdin was piped above");
    // A broken pipe means that nft ended early; its exit status and message say why.
    let written = input.write_all(text.as_bytes());
    drop(input);
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() && written.is_ok() {
        return Ok(port);
    }
    Err(NftError::Refused { family, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}
