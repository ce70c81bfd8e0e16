//! The command line, and the wiring of all rooms.

mod client;
mod rooms;
mod run;
mod tls;
mod token;

use std::io::IsTerminal as _;

use clap::{Parser, Subcommand};

pub use run::{RunError, RunOptions};

/// A small Kubernetes control plane: API server, scheduler and controllers in one process.
#[derive(Debug, Parser)]
#[command(name = "stoker-control-plane", version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API, schedule pods and run the controllers, until told to stop.
    Run(RunOptions),
    /// Make, show and remove bootstrap tokens, by which new nodes join the cluster.
    Token(token::TokenOptions),
}

/// Runs what the command line says; answers with the process' exit code.
pub fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("STOKER_LOG").unwrap_or_else(|_| "info".into());
    // Colours are for people at a terminal, not for the journal.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    // Two workers serve thousands of requests a second, and each has its own arena of memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("control-plane")
        .enable_all()
        .build();
    let result: Result<(), Box<dyn std::error::Error>> = match (runtime, arguments.command) {
        (Ok(runtime), Command::Run(options)) => runtime.block_on(run::run(options)).map_err(Into::into),
        (Ok(runtime), Command::Token(options)) => runtime.block_on(token::run(options)).map_err(Into::into),
        (Err(source), _) => Err(RunError::Runtime { source }.into()),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            let mut source = error.source();
            while let Some(cause) = source {
                tracing::error!("  because: {cause}");
                source = cause.source();
            }
            std::process::ExitCode::FAILURE
        }
    }
}
