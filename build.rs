//! Compiles what the agent embeds: the gRPC clients of `proto/`.

fn main() {}
