//! What the operator wrote, and what follows from it.
//!
//! Two layers: as written (every field optional, exactly upstream's names) and as resolved ([`KubeletConfig`], without
//! options that a default fills). Flags override drop-ins, drop-ins override the file, the file overrides defaults
//! (A22.2d). Errors name the file, the field and the line.

mod credential_providers;
mod duration;
mod feature_gates;
mod flags;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod kube_proxy;
mod kubeconfig;
mod kubelet;
mod load;
mod node_labels;
mod settings;
mod stoker;
#[cfg(test)]
mod tests;
mod validate;
mod without_effect;

pub use credential_providers::{CredentialProvider, ProviderError, ProviderTokens, load_credential_providers};
pub use duration::GoDuration;
pub use flags::{FlagError, Flags, arguments, read_flags, with_pflag_names};
pub use kube_proxy::{
    Conntrack, DetectLocal, KubeProxyConfig, LoadedProxy, ProxyMode, load_proxy_config, proxy_config_of,
};
pub use kubeconfig::{Credentials, KubeconfigError, read_kubeconfig, write_kubeconfig};
pub use kubelet::KubeletConfig;
pub use load::{ConfigError, Loaded, load};
pub use node_labels::{LabelError, parse_node_labels};
pub use stoker::{Cni, DEFAULT_STOKER_CONFIG, PodNetwork, ServiceMode, StokerConfig, load_stoker_config};
pub use validate::parse_bool;
