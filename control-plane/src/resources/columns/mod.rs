//! What `kubectl get` prints: the columns of each kind and how an object fills them (C4).
//!
//! Cells are written as JSON straight into the answer, so a row costs no memory of its own. One file per group holds
//! the printers; a kind without one gets the generic columns Name and Created At (C4.39).

mod access;
mod apps;
mod batch;
mod cluster;
mod core;
mod networking;
mod pod;
mod policy;
mod storage;

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use serde_json::Value;

use self::access::{get, text, time};

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its header; kubectl writes it in capitals.
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the column that identifies the object.
    pub format: &'static str,
    /// 0: always shown, 1: only with `-o wide`.
    pub priority: u8,
}

/// The columns of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    /// In the order of the cells.
    pub columns: &'static [Column],
    /// Writes exactly one cell for each column.
    pub row: fn(&Value, Timestamp, &mut Cells<'_>),
    /// Whether the object is done, so that the row is marked `Completed`: the reason and message.
    pub completed: fn(&Value) -> Option<(&'static str, &'static str)>,
}

impl Printer {
    const fn new(columns: &'static [Column], row: fn(&Value, Timestamp, &mut Cells<'_>)) -> Self {
        Self { columns, row, completed: |_| None }
    }
}

const fn column(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, format: "", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1 }
}

const fn wide_integer(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 1 }
}

const fn string(name: &'static str) -> Column {
    column(name, "string")
}

const fn integer(name: &'static str) -> Column {
    column(name, "integer")
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
const AGE: Column = string("Age");

/// Writes the cells of one row as a JSON array.
#[derive(Debug)]
pub struct Cells<'o> {
    out: &'o mut Vec<u8>,
    any: bool,
}

impl<'o> Cells<'o> {
    /// Opens the array.
    pub fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'[');
        Self { out, any: false }
    }

    /// Closes the array.
    pub fn close(self) {
        self.out.push(b']');
    }

    fn next(&mut self) {
        if self.any {
            self.out.push(b',');
        }
        self.any = true;
    }

    /// A string.
    pub fn text(&mut self, value: &str) {
        self.display(value);
    }

    /// A string, or `<none>` if it is empty.
    pub fn or_none(&mut self, value: &str) {
        self.text(if value.is_empty() { "<none>" } else { value });
    }

    /// Whatever displays, as a string.
    pub fn display(&mut self, value: impl fmt::Display) {
        self.next();
        self.out.push(b'"');
        // Writing into a `Vec` cannot fail.
        let _ = write!(Escaped(self.out), "{value}");
        self.out.push(b'"');
    }

    /// A number.
    pub fn integer(&mut self, value: i64) {
        self.next();
        let _ = write!(Raw(self.out), "{value}");
    }

    /// A boolean.
    pub fn boolean(&mut self, value: bool) {
        self.next();
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn name(&mut self, object: &Value) {
        self.text(text(object, &["metadata", "name"]));
    }

    fn age(&mut self, object: &Value, now: Timestamp) {
        self.since(time(object, &["metadata", "creationTimestamp"]), now);
    }

    /// How long ago, `<unknown>` without a time.
    fn since(&mut self, at: Option<Timestamp>, now: Timestamp) {
        match at {
            Some(at) => self.display(HumanDuration(seconds_between(at, now))),
            None => self.text("<unknown>"),
        }
    }
}

fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.as_second() - from.as_second()
}

struct Raw<'o>(&'o mut Vec<u8>);

impl fmt::Write for Raw<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

struct Escaped<'o>(&'o mut Vec<u8>);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match byte {
                b'"' => self.0.extend_from_slice(b"\\\""),
                b'\\' => self.0.extend_from_slice(b"\\\\"),
                b'\n' => self.0.extend_from_slice(b"\\n"),
                b'\r' => self.0.extend_from_slice(b"\\r"),
                b'\t' => self.0.extend_from_slice(b"\\t"),
                0..0x20 => {
                    let _ = write!(Raw(self.0), "\\u{byte:04x}");
                }
                _ => self.0.push(byte),
            }
        }
        Ok(())
    }
}

/// Seconds as kubectl writes ages: two units at most, fewer as time goes by.
#[derive(Debug, Clone, Copy)]
pub struct HumanDuration(pub i64);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        let (minutes, hours) = (seconds / 60, seconds / 3600);
        let (days, years) = (hours / 24, hours / 24 / 365);
        let two = |f: &mut fmt::Formatter<'_>, big: i64, unit: char, small: i64, small_unit: char| {
            if small == 0 { write!(f, "{big}{unit}") } else { write!(f, "{big}{unit}{small}{small_unit}") }
        };
        match seconds {
            ..-1 => f.write_str("<invalid>"),
            -1 => f.write_str("0s"),
            0..120 => write!(f, "{seconds}s"),
            _ if minutes < 10 => two(f, minutes, 'm', seconds % 60, 's'),
            _ if minutes < 180 => write!(f, "{minutes}m"),
            _ if hours < 8 => two(f, hours, 'h', minutes % 60, 'm'),
            _ if hours < 48 => write!(f, "{hours}h"),
            _ if hours < 192 => two(f, days, 'd', hours % 24, 'h'),
            _ if hours < 24 * 365 * 2 => write!(f, "{days}d"),
            _ if hours < 24 * 365 * 8 => two(f, years, 'y', days % 365, 'd'),
            _ => write!(f, "{years}y"),
        }
    }
}

static GENERIC: Printer = Printer::new(&[NAME, column("Created At", "date")], |object, _, cells| {
    cells.name(object);
    cells.text(text(object, &["metadata", "creationTimestamp"]));
});

static STATUS: Printer = Printer::new(&[string("Status"), string("Reason"), string("Message")], |object, _, cells| {
    for field in ["status", "reason", "message"] {
        cells.text(text(object, &[field]));
    }
});

/// The printer of a kind.
pub fn printer(group: &str, kind: &str) -> &'static Printer {
    let found = match group {
        "" | "events.k8s.io" => core::printer(kind),
        "apps" => apps::printer(kind),
        "batch" => batch::printer(kind),
        "autoscaling" | "policy" | "scheduling.k8s.io" | "rbac.authorization.k8s.io" => policy::printer(kind),
        "networking.k8s.io" | "discovery.k8s.io" => networking::printer(kind),
        "storage.k8s.io" | "resource.k8s.io" => storage::printer(kind),
        "coordination.k8s.io"
        | "certificates.k8s.io"
        | "node.k8s.io"
        | "admissionregistration.k8s.io"
        | "flowcontrol.apiserver.k8s.io" => cluster::printer(kind),
        _ => None,
    };
    found.unwrap_or(if kind == "Status" { &STATUS } else { &GENERIC })
}

/// `Containers`, `Images` and `Selector` of a workload, for `-o wide`.
fn template_cells(object: &Value, cells: &mut Cells<'_>) {
    let containers = access::items(object, &["spec", "template", "spec", "containers"]);
    cells.display(access::Fields(containers, "name"));
    cells.display(access::Fields(containers, "image"));
}

fn selector_cell(object: &Value, cells: &mut Cells<'_>) {
    cells.display(access::Selector(get(object, &["spec", "selector"])));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(super) const NOW: &str = "2026-01-01T00:10:00Z";

    /// The cells of an object, by column name.
    pub(super) fn cells(group: &str, object: &Value) -> Vec<(&'static str, Value)> {
        let printer = printer(group, object["kind"].as_str().unwrap());
        let mut out = Vec::new();
        let mut cells = Cells::open(&mut out);
        (printer.row)(object, NOW.parse().unwrap(), &mut cells);
        cells.close();
        let values: Vec<Value> = serde_json::from_slice(&out).unwrap();
        assert_eq!(values.len(), printer.columns.len(), "one cell for each column of {}", object["kind"]);
        printer.columns.iter().map(|column| column.name).zip(values).collect()
    }

    #[track_caller]
    pub(super) fn check(group: &str, object: Value, expected: &[(&str, Value)]) {
        let found = cells(group, &object);
        for (name, value) in expected {
            let cell = found.iter().find(|(column, _)| column == name).unwrap_or_else(|| panic!("no column {name}"));
            assert_eq!(&cell.1, value, "{name}");
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (601, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 120, "3h2m"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
        ] {
            assert_eq!(HumanDuration(seconds).to_string(), text);
        }
    }

    /// Every kind with a schema prints one cell for each column, even from an empty object (C4.39 for the generic ones).
    #[test]
    fn empty_objects_fill_every_column() {
        for (group, kind) in [
            (
                "",
                "Pod Node Service Event Namespace Secret ServiceAccount ConfigMap Endpoints PersistentVolume PersistentVolumeClaim ReplicationController PodTemplate ResourceQuota ComponentStatus LimitRange",
            ),
            ("events.k8s.io", "Event"),
            ("apps", "Deployment ReplicaSet StatefulSet DaemonSet ControllerRevision"),
            ("batch", "Job CronJob"),
            ("autoscaling", "HorizontalPodAutoscaler Scale"),
            ("policy", "PodDisruptionBudget"),
            ("scheduling.k8s.io", "PriorityClass"),
            ("rbac.authorization.k8s.io", "Role RoleBinding ClusterRole ClusterRoleBinding"),
            ("networking.k8s.io", "Ingress IngressClass NetworkPolicy IPAddress ServiceCIDR"),
            ("discovery.k8s.io", "EndpointSlice"),
            (
                "storage.k8s.io",
                "StorageClass VolumeAttachment CSINode CSIDriver CSIStorageCapacity VolumeAttributesClass",
            ),
            ("resource.k8s.io", "DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice"),
            ("coordination.k8s.io", "Lease"),
            ("certificates.k8s.io", "CertificateSigningRequest"),
            ("node.k8s.io", "RuntimeClass"),
            (
                "admissionregistration.k8s.io",
                "MutatingWebhookConfiguration ValidatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding MutatingAdmissionPolicy MutatingAdmissionPolicyBinding",
            ),
            ("flowcontrol.apiserver.k8s.io", "FlowSchema PriorityLevelConfiguration"),
        ] {
            for kind in kind.split(' ') {
                cells(group, &json!({"kind": kind}));
            }
        }
    }
}
