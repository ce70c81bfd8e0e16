//! Columns of volumes, storage and dynamic resources (C4.16, C4.17, C4.24, C4.28, C4.29, C4.34).

use std::fmt;

use serde_json::Value;

use super::access::{Fields, Joined, Plain, Strings, flag, get, items, map, text};
use super::{AGE, Cells, NAME, Printer, column, integer, string, wide};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "StorageClass" => &STORAGE_CLASS,
        "VolumeAttributesClass" => &ATTRIBUTES_CLASS,
        "VolumeAttachment" => &ATTACHMENT,
        "CSINode" => &CSI_NODE,
        "CSIDriver" => &CSI_DRIVER,
        "CSIStorageCapacity" => &CAPACITY,
        "DeviceClass" | "ResourceClaimTemplate" => &NAME_AND_AGE,
        "ResourceClaim" => &RESOURCE_CLAIM,
        "ResourceSlice" => &RESOURCE_SLICE,
        _ => return None,
    })
}

struct AccessModes<'v>(&'v [Value]);

impl fmt::Display for AccessModes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |mode: &Value, f: &mut fmt::Formatter<'_>| {
            f.write_str(match mode.as_str().unwrap_or("") {
                "ReadWriteOnce" => "RWO",
                "ReadOnlyMany" => "ROX",
                "ReadWriteMany" => "RWX",
                "ReadWriteOncePod" => "RWOP",
                other => other,
            })
        };
        Joined(self.0, short, ",").fmt(f)
    }
}

fn phase(object: &Value) -> &str {
    if get(object, &["metadata", "deletionTimestamp"]).is_null() {
        text(object, &["status", "phase"])
    } else {
        "Terminating"
    }
}

fn or_unset(object: &Value, path: &[&str], cells: &mut Cells<'_>) {
    let value = text(object, path);
    cells.text(if value.is_empty() { "<unset>" } else { value });
}

pub(super) static VOLUME: Printer = Printer::new(
    &[
        NAME,
        string("Capacity"),
        string("Access Modes"),
        string("Reclaim Policy"),
        string("Status"),
        string("Claim"),
        string("StorageClass"),
        string("VolumeAttributesClass"),
        string("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    |volume, now, cells| {
        cells.name(volume);
        cells.display(Plain(get(volume, &["spec", "capacity", "storage"])));
        cells.display(AccessModes(items(volume, &["spec", "accessModes"])));
        cells.text(text(volume, &["spec", "persistentVolumeReclaimPolicy"]));
        cells.text(phase(volume));
        let claim = get(volume, &["spec", "claimRef"]);
        if claim.is_null() {
            cells.text("");
        } else {
            cells.display(format_args!("{}/{}", text(claim, &["namespace"]), text(claim, &["name"])));
        }
        cells.text(text(volume, &["spec", "storageClassName"]));
        or_unset(volume, &["spec", "volumeAttributesClassName"], cells);
        cells.text(text(volume, &["status", "reason"]));
        cells.age(volume, now);
        or_unset(volume, &["spec", "volumeMode"], cells);
    },
);

pub(super) static CLAIM: Printer = Printer::new(
    &[
        NAME,
        string("Status"),
        string("Volume"),
        string("Capacity"),
        string("Access Modes"),
        string("StorageClass"),
        string("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    |claim, now, cells| {
        cells.name(claim);
        cells.text(phase(claim));
        let volume = text(claim, &["spec", "volumeName"]);
        cells.text(volume);
        if volume.is_empty() {
            cells.text("");
            cells.text("");
        } else {
            cells.display(Plain(get(claim, &["status", "capacity", "storage"])));
            cells.display(AccessModes(items(claim, &["status", "accessModes"])));
        }
        cells.text(text(claim, &["spec", "storageClassName"]));
        or_unset(claim, &["spec", "volumeAttributesClassName"], cells);
        cells.age(claim, now);
        or_unset(claim, &["spec", "volumeMode"], cells);
    },
);

static STORAGE_CLASS: Printer = Printer::new(
    &[
        NAME,
        string("Provisioner"),
        string("ReclaimPolicy"),
        string("VolumeBindingMode"),
        string("AllowVolumeExpansion"),
        AGE,
    ],
    |class, now, cells| {
        let annotation = "storageclass.kubernetes.io/is-default-class";
        let default = text(class, &["metadata", "annotations", annotation]) == "true";
        let mark = if default { " (default)" } else { "" };
        cells.display(format_args!("{}{mark}", text(class, &["metadata", "name"])));
        cells.text(text(class, &["provisioner"]));
        let or = |path, otherwise| match text(class, &[path]) {
            "" => otherwise,
            value => value,
        };
        cells.text(or("reclaimPolicy", "Delete"));
        cells.text(or("volumeBindingMode", "Immediate"));
        cells.display(flag(class, &["allowVolumeExpansion"]));
        cells.age(class, now);
    },
);

static ATTRIBUTES_CLASS: Printer = Printer::new(&[NAME, string("DriverName"), AGE], |class, now, cells| {
    cells.name(class);
    cells.text(text(class, &["driverName"]));
    cells.age(class, now);
});

static ATTACHMENT: Printer = Printer::new(
    &[NAME, string("Attacher"), string("PV"), string("Node"), column("Attached", "boolean"), AGE],
    |attachment, now, cells| {
        cells.name(attachment);
        cells.text(text(attachment, &["spec", "attacher"]));
        cells.text(text(attachment, &["spec", "source", "persistentVolumeName"]));
        cells.text(text(attachment, &["spec", "nodeName"]));
        cells.boolean(flag(attachment, &["status", "attached"]));
        cells.age(attachment, now);
    },
);

static CSI_NODE: Printer = Printer::new(&[NAME, integer("Drivers"), AGE], |node, now, cells| {
    cells.name(node);
    cells.integer(i64::try_from(items(node, &["spec", "drivers"]).len()).unwrap_or(i64::MAX));
    cells.age(node, now);
});

static CSI_DRIVER: Printer = Printer::new(
    &[
        NAME,
        column("AttachRequired", "boolean"),
        column("PodInfoOnMount", "boolean"),
        column("StorageCapacity", "boolean"),
        string("TokenRequests"),
        column("RequiresRepublish", "boolean"),
        string("Modes"),
        AGE,
    ],
    |driver, now, cells| {
        cells.name(driver);
        cells.boolean(get(driver, &["spec", "attachRequired"]).as_bool().unwrap_or(true));
        cells.boolean(flag(driver, &["spec", "podInfoOnMount"]));
        cells.boolean(flag(driver, &["spec", "storageCapacity"]));
        let tokens = items(driver, &["spec", "tokenRequests"]);
        if tokens.is_empty() {
            cells.text("<unset>");
        } else {
            cells.display(Fields(tokens, "audience"));
        }
        cells.boolean(flag(driver, &["spec", "requiresRepublish"]));
        cells.display(Strings(items(driver, &["spec", "volumeLifecycleModes"])));
        cells.age(driver, now);
    },
);

static CAPACITY: Printer =
    Printer::new(&[NAME, string("StorageClassName"), string("Capacity")], |capacity, _, cells| {
        cells.name(capacity);
        cells.text(text(capacity, &["storageClassName"]));
        match get(capacity, &["capacity"]) {
            Value::Null => cells.text("<unset>"),
            value => cells.display(Plain(value)),
        }
    });

static NAME_AND_AGE: Printer = Printer::new(&[NAME, AGE], |object, now, cells| {
    cells.name(object);
    cells.age(object, now);
});

static RESOURCE_CLAIM: Printer = Printer::new(&[NAME, string("State"), AGE], |claim, now, cells| {
    cells.name(claim);
    let deleted = !get(claim, &["metadata", "deletionTimestamp"]).is_null();
    let allocated = map(claim, &["status", "allocation"]).is_some();
    let reserved = !items(claim, &["status", "reservedFor"]).is_empty();
    let words = [(deleted, "deleted"), (allocated, "allocated"), (reserved, "reserved")];
    let words: Vec<&str> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
    cells.text(if words.is_empty() { "pending".to_owned() } else { words.join(",") }.as_str());
    cells.age(claim, now);
});

static RESOURCE_SLICE: Printer =
    Printer::new(&[NAME, string("Node"), string("Driver"), string("Pool"), AGE], |slice, now, cells| {
        cells.name(slice);
        let node = text(slice, &["spec", "nodeName"]);
        cells.text(if !node.is_empty() {
            node
        } else if flag(slice, &["spec", "allNodes"]) {
            "<all>"
        } else {
            "<unset>"
        });
        cells.text(text(slice, &["spec", "driver"]));
        cells.text(text(slice, &["spec", "pool", "name"]));
        cells.age(slice, now);
    });

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::check;

    #[test]
    fn volumes_and_claims() {
        // C4.16, C4.17
        let volume = json!({"kind": "PersistentVolume", "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "claimRef": {"namespace": "n", "name": "c"}}, "status": {"phase": "Bound"}});
        check(
            "",
            volume,
            &[
                ("Capacity", json!("1Gi")),
                ("Access Modes", json!("RWO,ROX")),
                ("Claim", json!("n/c")),
                ("Status", json!("Bound")),
                ("VolumeAttributesClass", json!("<unset>")),
            ],
        );
        check(
            "",
            json!({"kind": "PersistentVolumeClaim", "status": {"phase": "Pending", "capacity": {"storage": "1Gi"}}}),
            &[("Capacity", json!(""))],
        );
    }

    #[test]
    fn the_default_class_is_marked() {
        // C4.24
        let class = json!({"kind": "StorageClass", "metadata": {"name": "x", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
        check(
            "storage.k8s.io",
            class,
            &[
                ("Name", json!("x (default)")),
                ("ReclaimPolicy", json!("Delete")),
                ("AllowVolumeExpansion", json!("false")),
            ],
        );
    }
}
