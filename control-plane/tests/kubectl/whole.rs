//! The whole control plane as its users run it: the program in a process of its own, on a loopback port.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_stoker-control-plane");

/// Ends when dropped.
pub(crate) struct Whole {
    program: Child,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: String,
}

impl Drop for Whole {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Whole {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let program = Command::new(PROGRAM)
            .args(["run", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", &format!("--port={port}")])
            .arg("--data-dir")
            .arg(dir.path())
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let whole = Self { program, dir, server: format!("https://127.0.0.1:{port}") };
        whole.until("the API server to be ready", || {
            whole.admin().exists() && whole.try_kubectl("get --raw /readyz").status.success()
        });
        whole
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// Waits until `condition` holds, for at most 30 s.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, condition: impl Fn() -> bool) {
        for _ in 0..300 {
            if condition() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        panic!("waited in vain for {what}:\n{log}");
    }

    /// A file for `-f`.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn kubectl_with(&self, credentials: &[&str], arguments: &str) -> Output {
        let mut command = Command::new("kubectl");
        command.env("HOME", self.dir.path()).env("KUBECONFIG", "/nonexistent").args(credentials);
        command.args(arguments.split_whitespace()).stdin(Stdio::null());
        command.output().expect("kubectl must be installed for these tests")
    }

    pub(crate) fn try_kubectl(&self, arguments: &str) -> Output {
        let kubeconfig = self.admin();
        self.kubectl_with(&["--kubeconfig", kubeconfig.to_str().unwrap()], arguments)
    }

    /// The standard output of a kubectl that must succeed.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &str) -> String {
        succeeded(arguments, &self.try_kubectl(arguments))
    }

    /// The standard error of a kubectl that must fail.
    #[track_caller]
    pub(crate) fn kubectl_fails(&self, arguments: &str) -> String {
        failed(arguments, &self.try_kubectl(arguments))
    }

    /// As somebody who shows a token.
    pub(crate) fn kubectl_as(&self, token: &str, arguments: &str) -> Output {
        let ca = format!("--certificate-authority={}", self.dir.path().join("pki/ca.crt").display());
        let (server, token) = (format!("--server={}", self.server), format!("--token={token}"));
        self.kubectl_with(&[&server, &ca, &token], arguments)
    }

    /// What somebody without credentials gets: code and body. kubectl would ask for a name.
    pub(crate) fn anonymously(&self, path: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "-w", "\n%{http_code}", "--cacert"]).arg(self.dir.path().join("pki/ca.crt"));
        let told = succeeded(path, &command.arg(format!("{}{path}", self.server)).output().unwrap());
        let (body, code) = told.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), body.to_owned())
    }

    pub(crate) fn object(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("{arguments} -o json"))).unwrap()
    }

    /// Runs a command of the program that is not `run`.
    #[track_caller]
    pub(crate) fn program(&self, arguments: &[&str]) -> String {
        let output = Command::new(PROGRAM).args(arguments).arg("--data-dir").arg(self.dir.path()).output().unwrap();
        succeeded(&arguments.join(" "), &output)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
pub(crate) fn succeeded(what: &str, output: &Output) -> String {
    assert!(output.status.success(), "{what}:\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
pub(crate) fn failed(what: &str, output: &Output) -> String {
    assert!(!output.status.success(), "{what} should fail: {}", text(&output.stdout));
    text(&output.stderr)
}
