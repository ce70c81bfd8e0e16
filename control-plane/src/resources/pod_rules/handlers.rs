//! Probes and hooks.

use serde_json::Value;

use super::super::field::{Errors, Path};
use super::super::format;
use super::super::tree::{is_set, items, text};
use super::not_negative;

pub(super) fn validate_probes(container: &Value, path: &Path, errors: &mut Errors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (probe, path) = (&container[name], path.field(name));
        if probe.is_null() {
            continue;
        }
        handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], None, &path, errors);
        for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            not_negative(probe, key, &path, errors);
        }
        let grace = probe["terminationGracePeriodSeconds"].as_i64();
        if let Some(grace) = grace.filter(|grace| *grace <= 0) {
            errors.invalid(path.field("terminationGracePeriodSeconds"), grace, "must be greater than 0");
        }
        if name == "readinessProbe" {
            if let Some(grace) = grace {
                let detail = "must not be set for readinessProbes";
                errors.invalid(path.field("terminationGracePeriodSeconds"), grace, detail);
            }
        } else if probe["successThreshold"] != 1 {
            let value = probe["successThreshold"].as_i64().unwrap_or(0);
            errors.invalid(path.field("successThreshold"), value, "must be 1");
        }
    }
}

pub(super) fn validate_lifecycle(container: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let lifecycle = &container["lifecycle"];
    let grace = spec["terminationGracePeriodSeconds"].as_i64();
    for hook in ["postStart", "preStop"] {
        if is_set(lifecycle, hook) {
            let allowed = ["exec", "httpGet", "tcpSocket", "sleep"];
            handler(&lifecycle[hook], &allowed, grace, &path.field(hook), errors);
        }
    }
    if let Some(signal) = lifecycle["stopSignal"].as_str() {
        stop_signal(signal, spec, path.field("stopSignal"), errors);
    }
}

/// One way to ask or to tell a container something.
fn handler(handler: &Value, kinds: &[&str], grace: Option<i64>, path: &Path, errors: &mut Errors) {
    let mut given = kinds.iter().filter(|kind| is_set(handler, kind));
    let Some(first) = given.next() else {
        errors.required(path.clone(), "must specify a handler type");
        return;
    };
    let (action, place) = (&handler[*first], path.field(first));
    match *first {
        "exec" if items(action, "command").next().is_none() => errors.required(place.field("command"), ""),
        "httpGet" => request(action, &place, errors),
        "tcpSocket" | "grpc" => port(&action["port"], &place.field("port"), errors),
        "sleep" => {
            let seconds = action["seconds"].as_i64().unwrap_or(0);
            if let Some(grace) = grace.filter(|grace| seconds < 0 || seconds > *grace) {
                let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.invalid(place, seconds, detail);
            }
        }
        _ => {}
    }
    for other in given {
        errors.forbidden(path.field(other), "may not specify more than 1 handler type");
    }
}

fn request(request: &Value, path: &Path, errors: &mut Errors) {
    if text(request, "path").is_empty() {
        errors.required(path.field("path"), "");
    }
    port(&request["port"], &path.field("port"), errors);
    let scheme = text(request, "scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.not_supported(path.field("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in items(request, "httpHeaders") {
        let name = text(header, "name");
        errors.faults(&path.field("httpHeaders"), name, format::header_name(name));
    }
}

/// A number or a name.
fn port(port: &Value, path: &Path, errors: &mut Errors) {
    if let Some(name) = port.as_str() {
        errors.faults(path, name, format::port_name(name));
        return;
    }
    let number = port.as_i64().unwrap_or(0);
    for fault in format::port_number(number) {
        errors.invalid(path.clone(), number, fault);
    }
}

const LINUX_SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

fn stop_signal(signal: &str, spec: &Value, path: Path, errors: &mut Errors) {
    let supported: &[&str] = match text(&spec["os"], "name") {
        "" => {
            errors.forbidden(path, "may not be set for containers with empty `spec.os.name`");
            return;
        }
        "windows" => &["SIGKILL", "SIGTERM"],
        _ => LINUX_SIGNALS,
    };
    if !supported.contains(&signal) {
        errors.not_supported(path, signal, supported);
    }
}
