//! Compiles what the agent embeds: the gRPC clients of `proto/` and the pause program.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    compile_proto()?;
    compile_pause()
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
        // Requests are moved through a dozen futures, each as large as the largest that it ever holds.
        .boxed(".runtime.v1.RunPodSandboxRequest.config")
        .boxed(".runtime.v1.CreateContainerRequest.config")
        .boxed(".runtime.v1.CreateContainerRequest.sandbox_config")
        .boxed(".runtime.v1.PullImageRequest.sandbox_config")
        // Passwords: `runtime::cri` writes these `Debug` impls itself.
        .skip_debug([".runtime.v1.AuthConfig"])
        .disable_comments(["."])
        .compile_fds(files)?;
    // Volume plugins and collectors of spans: a client for the agent, and for the tests a server, in a folder of its own.
    let plugins = ["proto/csi.proto", "proto/pluginregistration.proto", "proto/otlp.proto"];
    let plugins = protox::compile(plugins, ["proto"])?;
    let server = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("server");
    std::fs::create_dir_all(&server)?;
    let configure = || tonic_prost_build::configure().build_transport(false).btree_map(".").disable_comments(["."]);
    configure().build_server(false).compile_fds(plugins.clone())?;
    configure().build_client(false).out_dir(server).compile_fds(plugins)?;
    // Here both sides serve: the agent takes registrations and questions, the tests play plugins and monitors.
    let files = ["proto/deviceplugin.proto", "proto/podresources.proto", "proto/podresources_v1alpha1.proto"];
    configure().compile_fds(protox::compile(files, ["proto"])?)?;
    configure().compile_fds(protox::compile(["proto/dra.proto", "proto/dra_v1beta1.proto"], ["proto"])?)?;
    // Its package has the name of another's, so it needs a folder of its own.
    let health = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("dra_health");
    std::fs::create_dir_all(&health)?;
    configure().out_dir(health).compile_fds(protox::compile(["proto/dra_health.proto"], ["proto"])?)?;
    Ok(())
}

/// A program of its own, not a crate: cargo cannot embed one package's binary in another without nightly features.
fn compile_pause() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=packaging/pause/pause.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let target = env::var("TARGET")?;
    if !target.starts_with("x86_64-") && !target.starts_with("aarch64-") {
        return Err(format!("packaging/pause/pause.rs has no system calls for {target}: add them").into());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("pause");
    let mut rustc = Command::new(env::var_os("RUSTC").ok_or("cargo sets RUSTC")?);
    rustc.args(["--edition=2024", "--crate-name=pause", "--crate-type=bin", "--target", &target]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=static", "-Cdebuginfo=0"]);
    // Segments that are not padded to pages, and nothing that differs from build to build.
    for link in ["-nostartfiles", "-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-n", "-Wl,-z,noexecstack"] {
        rustc.arg(format!("-Clink-arg={link}"));
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("-Clinker=");
        option.push(linker);
        rustc.arg(option);
    }
    let status = rustc.arg("-o").arg(&out).arg("packaging/pause/pause.rs").status()?;
    if !status.success() {
        return Err("rustc could not compile packaging/pause/pause.rs; its messages are above".into());
    }
    Ok(())
}
