//! Entries for `fuzz/`: what may be asked of this room with any bytes.

use std::path::Path;

use super::kube_proxy::{KIND, KubeProxyConfig};
use super::load::{of_text, read};

/// Configuration files of kubelet and kube-proxy.
pub fn files(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    of_text(text);
    // What is wrong with it does not matter here, only that it can be said.
    let _ = read::<KubeProxyConfig>(Path::new("config"), text, KIND, &mut Vec::new());
}
