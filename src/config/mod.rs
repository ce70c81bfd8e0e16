//! What the operator wrote: KubeletConfiguration, KubeProxyConfiguration, flags and kubeconfig, and what follows from it.
