//! What is logged, and how: text for the journal, or JSON. How much can be changed while the agent runs.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

/// Changes how much is logged.
static SETTER: OnceLock<Setter> = OnceLock::new();

type Setter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// What klog's levels mean here: from 2 on details of ours, from 4 on those of our libraries.
fn directives(verbosity: i64) -> &'static str {
    match verbosity {
        ..=1 => "info,kube=warn,hyper=warn,h2=warn,rustls=warn",
        2..=3 => "info,stoker=debug,kube=warn,hyper=warn,h2=warn,rustls=warn",
        4..=5 => "debug,h2=info,hyper=info,rustls=info",
        _ => "trace",
    }
}

/// Sends logs to standard error. `verbosity` is klog's; `RUST_LOG` overrides it. The journal stamps its lines itself.
pub(super) fn init(verbosity: i64, json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbosity)));
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let (filter, handle) = reload::Layer::new(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = if json {
        layer.json().boxed()
    } else if journal {
        layer.with_ansi(false).without_time().boxed()
    } else {
        layer.with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    // A second call, as tests make it, changes nothing.
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_ok() {
        let _ = SETTER.set(Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())));
    }
}

/// From now on as much as at that level, also where `RUST_LOG` said otherwise at the start: whoever asks now knows better.
pub(super) fn set_verbosity(verbosity: i64) -> Result<(), String> {
    let set = SETTER.get().ok_or("logging has not begun")?;
    set(EnvFilter::new(directives(verbosity)))?;
    tracing::info!(verbosity, "the level of logging was changed");
    Ok(())
}
