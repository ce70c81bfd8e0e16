//! SIGHUP: reads the configuration again, takes over what can change while pods run, and names what needs a restart.

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::logging;
use crate::config::{Flags, KubeletConfig, load};

/// Reads again at each SIGHUP; ends never. `as_kubelet`: which defaults hold without a file.
pub(super) async fn on_hangup(flags: Flags, first: KubeletConfig, as_kubelet: bool) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return std::future::pending().await };
    let mut current = first;
    while hangups.recv().await.is_some() {
        let loaded = match load(flags.config.as_deref(), flags.config_dir.as_deref(), &flags.overrides, as_kubelet) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be read again; what was read before goes on");
                continue;
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if loaded.kubelet.logging.verbosity != current.logging.verbosity {
            let level = flags.verbosity.max(loaded.kubelet.logging.verbosity.into());
            if let Err(reason) = logging::set_verbosity(level) {
                tracing::error!(reason, "the level of logging stays");
            }
            current.logging.verbosity = loaded.kubelet.logging.verbosity;
        }
        let waiting = changed(&current, &loaded.kubelet);
        if waiting.is_empty() {
            tracing::info!("the configuration was read again");
        } else {
            tracing::warn!(
                fields = waiting.join(", "),
                "the configuration was read again; these fields need a restart"
            );
        }
    }
}

/// Names of the fields that differ.
fn changed(before: &KubeletConfig, after: &KubeletConfig) -> Vec<String> {
    let fields = |config: &KubeletConfig| serde_json::to_value(config).unwrap_or_default();
    let (before, after) = (fields(before), fields(after));
    let none = serde_json::Map::new();
    let object = |value: &Value| value.as_object().unwrap_or(&none).clone();
    let (before, after) = (object(&before), object(&after));
    after.iter().filter(|(name, value)| before.get(*name) != Some(value)).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let before = KubeletConfig::default();
        assert!(changed(&before, &before).is_empty());
        let after = KubeletConfig { max_pods: 7, fail_swap_on: false, ..KubeletConfig::default() };
        assert_eq!(changed(&before, &after), ["failSwapOn", "maxPods"]);
    }
}
