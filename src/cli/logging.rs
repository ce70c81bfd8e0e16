//! What is logged, and how: text for the journal, or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Sends logs to standard error. `verbosity` is klog's: from 2 on details of ours, from 4 on those of our libraries.
/// `RUST_LOG` overrides it. The journal stamps its lines itself.
pub(super) fn init(verbosity: i64, json: bool) {
    let default = match verbosity {
        ..=1 => "info,kube=warn,hyper=warn,h2=warn,rustls=warn",
        2..=3 => "info,stoker=debug,kube=warn,hyper=warn,h2=warn,rustls=warn",
        4..=5 => "debug,h2=info,hyper=info,rustls=info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, as tests make it, changes nothing.
    let _ = if json {
        builder.json().try_init()
    } else if journal {
        builder.with_ansi(false).without_time().try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
}
