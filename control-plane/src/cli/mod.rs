//! The command line, and the wiring of all rooms.

mod rooms;
mod run;
mod tls;

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
}

/// Runs what the command line says; answers with the process' exit code.
pub fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("STOKER_LOG").unwrap_or_else(|_| "info".into());
    // Colours are for people at a terminal, not for the journal.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    let Command::Run(options) = arguments.command;
    // Two workers serve thousands of requests a second, and each has its own arena of memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("control-plane")
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run::run(options)),
        Err(source) => Err(RunError::Runtime { source }),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                tracing::error!("  because: {cause}");
                source = cause.source();
            }
            std::process::ExitCode::FAILURE
        }
    }
}
