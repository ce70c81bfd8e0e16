//! Which claims a pod may use, and what its containers get of them.

use serde_json::{Value, from_value, json};

use super::*;

fn pod(spec: Value, status: Value) -> Pod {
    from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "p-uid"},
        "spec": spec, "status": status,
    }))
    .unwrap()
}

fn claim(change: impl FnOnce(&mut Value)) -> ResourceClaim {
    let mut claim = json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "c-uid"},
        "spec": {},
        "status": {
            "reservedFor": [{"resource": "pods", "name": "p", "uid": "p-uid"}],
            "allocation": {"devices": {"results": [
                {"driver": "gpu.example.com", "pool": "node", "device": "gpu-0", "request": "gpu"},
                {"driver": "nic.example.com", "pool": "node", "device": "nic-0", "request": "nic"},
            ]}},
        },
    });
    change(&mut claim);
    from_value(claim).unwrap()
}

#[test]
fn a_pod_uses_what_is_reserved_for_it() {
    // A15.8
    let reference = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("p-uid") };
    let found = usable(claim(|_| {}), &reference, false).unwrap();
    assert_eq!(found.drivers.keys().collect::<Vec<_>>(), ["gpu.example.com", "nic.example.com"]);
    assert_eq!((found.uid.as_str(), found.prepared), ("c-uid", false));
    let refused =
        |made_for_pod, change: &dyn Fn(&mut Value)| usable(claim(change), &reference, made_for_pod).unwrap_err();
    let text = "ResourceClaim n/c was not created for pod n/p (pod is not owner)";
    assert_eq!(refused(true, &|_| {}), text);
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p-uid", "controller": true}]);
    let owned = claim(|claim| claim["metadata"]["ownerReferences"] = owner.clone());
    assert!(usable(owned, &reference, true).is_ok());
    let text = "pod p (p-uid) is not allowed to use ResourceClaim c (c-uid)";
    assert_eq!(refused(false, &|claim| claim["status"]["reservedFor"][0]["uid"] = "other".into()), text);
    assert_eq!(refused(false, &|claim| claim["status"]["allocation"] = Value::Null), "ResourceClaim c: not allocated");
}

#[test]
fn claims_are_named_directly_or_were_made_from_a_template() {
    // A15.8
    let spec = |claim: Value| json!({"containers": [], "resourceClaims": [claim]});
    let direct = pod(spec(json!({"name": "x", "resourceClaimName": "c"})), json!({}));
    assert_eq!(named_by(&direct).collect::<Vec<_>>(), [Ok(Some(("c".to_owned(), false)))]);
    let template = || spec(json!({"name": "x", "resourceClaimTemplateName": "t"}));
    let not_yet = pod(template(), json!({}));
    let text = "pod \"n/p\": ResourceClaim not created yet".to_owned();
    assert_eq!(named_by(&not_yet).collect::<Vec<_>>(), [Err(text)]);
    let made = pod(template(), json!({"resourceClaimStatuses": [{"name": "x", "resourceClaimName": "p-x-1"}]}));
    assert_eq!(named_by(&made).collect::<Vec<_>>(), [Ok(Some(("p-x-1".to_owned(), true)))]);
    let none = pod(template(), json!({"resourceClaimStatuses": [{"name": "x"}]}));
    assert_eq!(named_by(&none).collect::<Vec<_>>(), [Ok(None)]);
    let broken = pod(spec(json!({"name": "x"})), json!({}));
    let text = "pod \"n/p\", spec.resourceClaim \"x\": none of the supported fields are set".to_owned();
    assert_eq!(named_by(&broken).collect::<Vec<_>>(), [Err(text)]);
}

#[tokio::test]
async fn containers_get_what_they_ask_for_of_a_claim() {
    // A15.8, A15.15
    let dir = tempfile::tempdir().unwrap();
    let claims = Claims::open(dir.path(), watch::Sender::new(0), CancellationToken::new());
    let device = |name: &str, request: &str| state::Device {
        pool_name: "node".into(),
        device_name: name.into(),
        request_names: Some(vec![request.into()]),
        cdi_device_ids: Some(vec![format!("example.com/class={name}")]),
        ..state::Device::default()
    };
    let plain = state::Device { cdi_device_ids: None, ..device("nic-0", "nic") };
    let drivers = [
        ("gpu.example.com".to_owned(), DriverState::of(vec![device("gpu-0", "gpu")])),
        ("nic.example.com".to_owned(), DriverState::of(vec![device("nic-1", "nic"), plain])),
    ];
    let known = Claim {
        uid: "c-uid".into(),
        name: "c".into(),
        namespace: "n".into(),
        pods: [("p-uid".to_owned(), Member {})].into(),
        drivers: drivers.into(),
        ..Claim::default()
    };
    claims.change(|all| Ok(all.insert(("n".into(), "c".into()), known))).unwrap();
    let container = |name: &str, wanted: Value| json!({"name": name, "resources": {"claims": wanted, "requests": {"example.com/gpu": "1"}}});
    let whole = pod(
        json!({
            "resourceClaims": [{"name": "x", "resourceClaimName": "c"}],
            "containers": [
                container("all", json!([{"name": "x"}])),
                container("nic", json!([{"name": "x", "request": "nic"}])),
                container("none", json!([])),
                container("extended", json!([])),
            ],
        }),
        json!({"extendedResourceClaimStatus": {
            "resourceClaimName": "c",
            "requestMappings": [{"containerName": "extended", "requestName": "gpu", "resourceName": "example.com/gpu"}],
        }}),
    );
    let all = whole.spec.as_ref().unwrap().containers.clone();
    let cdi = |index: usize| claims.cdi_devices(&whole, &all[index]).unwrap();
    assert_eq!(cdi(0), ["example.com/class=gpu-0", "example.com/class=nic-1"]);
    assert_eq!(cdi(1), ["example.com/class=nic-1"]);
    assert!(cdi(2).is_empty());
    assert_eq!(cdi(3), ["example.com/class=gpu-0"]);
    let given = claims.given(&whole, &all[1]);
    assert_eq!((given[0].name.as_str(), given[0].devices.len(), claims.given(&whole, &all[2]).len()), ("c", 3, 0));

    let statuses: Vec<_> = all
        .iter()
        .map(|c| json!({"name": c.name, "image": "", "imageID": "", "ready": true, "restartCount": 0}))
        .collect();
    let mut status: PodStatus = from_value(json!({"containerStatuses": statuses})).unwrap();
    claims.tell_health(&whole, &mut status);
    let told = |index: usize| {
        let all =
            status.container_statuses.as_ref().unwrap()[index].allocated_resources_status.clone().unwrap_or_default();
        let devices = |r: ResourceStatus| {
            let ids = r
                .resources
                .unwrap_or_default()
                .into_iter()
                .map(|d| format!("{} {}", d.resource_id, d.health.unwrap_or_default()));
            format!("{}: {}", r.name, ids.collect::<Vec<_>>().join(", "))
        };
        all.into_iter().map(devices).collect::<Vec<_>>()
    };
    let nics = "example.com/class=nic-1 Unknown, nic.example.com/node/nic-0 Unknown";
    assert_eq!(told(0), [format!("claim:x: example.com/class=gpu-0 Unknown, {nics}")]);
    assert_eq!(told(1), [format!("claim:x/nic: {nics}")]);
    assert!(told(2).is_empty());

    // A claim that nobody has prepared.
    let other = pod(json!({"resourceClaims": [{"name": "x", "resourceClaimName": "d"}], "containers": []}), json!({}));
    let text = "internal error: unable to get claim info for ResourceClaim d in namespace n";
    assert_eq!(claims.cdi_devices(&other, &all[0]).unwrap_err(), text);
    // Without drivers and an API server nothing comes of it, and without claims nothing is asked.
    assert_eq!(claims.prepare(&other).await.unwrap_err(), "fetch ResourceClaim d: this node has no API server");
    assert_eq!(claims.prepare(&pod(json!({"containers": []}), json!({}))).await, Ok(()));
    assert_eq!(claims.unprepare(&PodUid::new("stranger")).await, Ok(()));
    let text = "DRA driver gpu.example.com is not registered";
    assert_eq!(claims.unprepare(&PodUid::new("p-uid")).await.unwrap_err(), text, "it is tried again");
    assert_eq!(claims.pods(), [PodUid::new("p-uid")].into());
    // The next agent knows of it.
    let next = Claims::open(dir.path(), watch::Sender::new(0), CancellationToken::new());
    assert_eq!(next.pods(), [PodUid::new("p-uid")].into());
}
