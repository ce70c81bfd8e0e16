//! The CNI plugin, in the agent's own binary: one short process for each call, with no start-up beyond reading its
//! request. Also answers as `loopback`, which the runtime calls for every sandbox.
//!
//! A pod gets a veth pair and is reached by a route of its own: all its traffic, also to a pod of the same node, passes the
//! node's forwarding, where NetworkPolicy and Services act on it.

use std::io::Read as _;
use std::process::ExitCode;

mod answer;
mod attach;
mod request;
mod sandbox;

pub(super) use attach::collect;
pub use request::Failure;

/// The name under which a conf list names us.
pub const TYPE: &str = "stoker-cni";

/// Whether the process was started as a CNI plugin.
pub fn is_called() -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&program).file_name().map(std::ffi::OsStr::to_os_string).unwrap_or_default();
    std::env::var_os("CNI_COMMAND").is_some() || name == TYPE
}

/// Answers one call.
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin()
        .lock()
        .read_to_end(&mut input)
        .map_err(|error| Failure::new(request::IO_FAILURE, format!("cannot read the network configuration: {error}")));
    let answered = read.and_then(|_| answer(&input));
    match answered {
        Ok(text) => {
            if !text.is_empty() {
                println!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}", failure.text(&answer::version_in(&input)));
            ExitCode::FAILURE
        }
    }
}

fn answer(input: &[u8]) -> Result<String, Failure> {
    let call = request::read(|name| std::env::var(name).ok(), input)?;
    match call {
        request::Call::Version { asked } => Ok(answer::versions(&asked)),
        request::Call::Loopback(call) => sandbox::loopback(&call),
        request::Call::Pod(call) => attach::pod(&call),
        request::Call::Node(call) => attach::node(&call),
    }
}
