//! What is logged, and how: text for the journal, or JSON. How much can be changed while the agent runs.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::spans::{self, SpanLayer};

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

/// Spans for a collector are in no log.
fn without_spans(filter: EnvFilter) -> EnvFilter {
    let off = format!("{}=off", spans::TARGET).parse().expect("a name and a level are a directive");
    filter.add_directive(off)
}

/// Sends logs to standard error, and spans to their layer. `verbosity` is klog's; `RUST_LOG` overrides it. The journal stamps its lines
/// itself.
pub(super) fn init(verbosity: i64, json: bool, spans: Option<SpanLayer>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbosity)));
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let (filter, handle) = reload::Layer::new(without_spans(filter));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = if json {
        layer.json().boxed()
    } else if journal {
        layer.with_ansi(false).without_time().boxed()
    } else {
        layer.with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    let spans = spans.map(|spans| spans.with_filter(filter_fn(|about| about.target() == spans::TARGET)));
    let layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> =
        [Some(layer.with_filter(filter).boxed()), spans.map(Layer::boxed)].into_iter().flatten().collect();
    // A second call, as tests make it, changes nothing.
    if tracing_subscriber::registry().with(layers).try_init().is_ok() {
        let set = move |filter| handle.reload(without_spans(filter)).map_err(|error| error.to_string());
        let _ = SETTER.set(Box::new(set));
    }
}

/// From now on as much as at that level, also where `RUST_LOG` said otherwise at the start: whoever asks now knows better.
pub(super) fn set_verbosity(verbosity: i64) -> Result<(), String> {
    let set = SETTER.get().ok_or("logging has not begun")?;
    set(EnvFilter::new(directives(verbosity)))?;
    tracing::info!(verbosity, "the level of logging was changed");
    Ok(())
}
