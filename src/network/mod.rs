//! The pod network for nodes without a third-party CNI: the CNI plugin, routes or VXLAN through rtnetlink, NetworkPolicy.
