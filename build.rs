//! Compiles what the agent embeds: the gRPC client of `proto/`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    compile_proto()
}

/// protox instead of protoc: nothing but cargo is needed.
fn compile_proto() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        // Equal configurations must look equal: the hash of a container's configuration depends on the order of its maps.
        .btree_map(".")
        .bytes(".runtime.v1.ExecSyncResponse")
        // Passwords: `runtime::cri` writes these `Debug` impls itself.
        .skip_debug([".runtime.v1.AuthConfig"])
        .disable_comments(["."])
        .compile_fds(files)?;
    Ok(())
}
