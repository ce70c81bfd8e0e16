//! Records of pulls as kubelet writes them, and who may use an image by them.

use futures::FutureExt;

use super::*;

const IMAGE: &str = "r.example/team/app:1";

fn records(dir: &Path, policy: VerificationPolicy) -> PullRecords {
    PullRecords::new(dir, policy, Clock)
}

fn credential(secret: Option<(&str, &str)>, password: &str) -> Credential {
    let secret = secret.map(|(name, uid)| SecretRef { namespace: "ns".into(), name: name.into(), uid: uid.into() });
    Credential { username: "robot".into(), password: password.into(), secret, ..Credential::default() }
}

fn must_pull(records: &PullRecords, image: &str, credentials: &[Credential]) -> bool {
    records.must_pull(image, "sha256:1", std::future::ready(credentials.to_vec())).now_or_never().unwrap()
}

#[test]
fn policies_say_which_images_are_everybodys() {
    // A14.6
    use VerificationPolicy as P;
    let listed = P::new("NeverVerifyAllowlistedImages", &["r.example/own".into(), "r.example/free/*".into()]).unwrap();
    for (policy, image, pulled, verifies) in [
        (P::NeverVerify, IMAGE, true, false),
        (P::NeverVerifyPreloadedImages, IMAGE, false, false),
        (P::NeverVerifyPreloadedImages, IMAGE, true, true),
        (P::AlwaysVerify, IMAGE, false, true),
        (listed.clone(), IMAGE, false, true),
        (listed.clone(), "r.example/own:2", true, false),
        (listed.clone(), "r.example/own@sha256:0", true, false),
        (listed.clone(), "r.example/free/a/b:1", true, false),
        (listed, "r.example/owner", false, true),
    ] {
        assert_eq!(policy.verifies(image, pulled), verifies, "{policy:?} {image} {pulled}");
    }
    for pattern in ["", "*", "/*", "a*", "a/*/b", " a", "a:1", "a/b@sha256:1"] {
        let error = P::new("NeverVerifyAllowlistedImages", &[pattern.to_owned()]).unwrap_err();
        assert_eq!(error, BadPolicy::Pattern(pattern.to_owned()));
    }
    assert_eq!(P::new("NeverVerify", &["a".into()]), Err(BadPolicy::ListWithout));
    assert!(P::new("Sometimes", &[]).unwrap_err().to_string().contains("must be one of NeverVerify, "));
}

#[test]
fn what_one_pods_secret_opened_another_needs_it_for() {
    // A14.6
    let dir = tempfile::tempdir().unwrap();
    let records = records(dir.path(), VerificationPolicy::default());
    let own = credential(Some(("pull", "u1")), "s3cret");
    assert!(!must_pull(&records, IMAGE, &[]), "it was there before");
    records.begin(IMAGE).unwrap();
    assert!(must_pull(&records, IMAGE, &[]), "as long as a pull is under way nobody knows whose it is");
    records.begin(IMAGE).unwrap();
    records.end(IMAGE, None);
    assert!(must_pull(&records, IMAGE, &[]), "another pull goes on");
    records.end(IMAGE, Some(("sha256:1", Some(&own))));
    assert_eq!(fs::read_dir(dir.path().join("image_manager/pulling")).unwrap().count(), 0);
    for (credentials, pull, why) in [
        (vec![], true, "no credentials"),
        (vec![own.clone()], false, "the same secret"),
        (vec![credential(Some(("copy", "u2")), "s3cret")], false, "another secret with the same content"),
        (vec![credential(Some(("pull", "u1")), "new")], false, "the same secret with other content"),
        (vec![credential(Some(("copy", "u2")), "other")], false, "the one that was let in before"),
        (vec![credential(Some(("other", "u3")), "other?")], true, "another secret"),
        (vec![credential(None, "s3cret")], true, "what the node has is not the pod's"),
        (vec![credential(Some(("other", "u3")), "x"), own.clone()], false, "one of several"),
    ] {
        assert_eq!(must_pull(&records, IMAGE, &credentials), pull, "{why}");
    }
    assert!(must_pull(&records, "r.example/other:1", &[own]), "the same image by another name");
    assert!(!must_pull(&records_never(dir.path()), IMAGE, &[]));

    records.end(IMAGE, Some(("sha256:1", None)));
    assert!(!must_pull(&records, IMAGE, &[]), "it came without credentials: it is everybody's");
}

fn records_never(dir: &Path) -> PullRecords {
    records(dir, VerificationPolicy::NeverVerify)
}

#[test]
fn records_are_kubelets_files() {
    // A14.6
    let dir = tempfile::tempdir().unwrap();
    let records = records(dir.path(), VerificationPolicy::default());
    records.begin(IMAGE).unwrap();
    let intent = dir.path().join("image_manager/pulling").join(file_name(IMAGE));
    let text = fs::read_to_string(&intent).unwrap();
    assert_eq!(
        text,
        format!("{{\"kind\":\"ImagePullIntent\",\"apiVersion\":\"{API_VERSION}\",\"image\":\"{IMAGE}\"}}")
    );

    // The agent dies; the next one finds the image.
    let next = self::records(dir.path(), VerificationPolicy::default());
    let image = cri::Image { id: "sha256:1".into(), repo_tags: vec![IMAGE.into()], ..Default::default() };
    next.adopt(std::slice::from_ref(&image));
    assert!(!intent.exists() && must_pull(&next, IMAGE, &[credential(None, "x")]));

    // What kubelet wrote.
    let hash = hex::encode(Sha256::digest(br#"{"username":"robot","password":"a\u0026b"}"#));
    let written = format!(
        r#"{{"kind":"ImagePulledRecord","apiVersion":"{API_VERSION}","lastUpdatedTime":"2026-01-02T03:04:05Z","imageRef":"sha256:1",
        "credentialMapping":{{"r.example/team/app":{{"kubernetesSecrets":[
          {{"uid":"x","namespace":"other","name":"s","credentialHash":"{hash}"}}]}}}}}}"#
    );
    fs::write(next.pulled("sha256:1"), written).unwrap();
    assert!(!must_pull(&next, IMAGE, &[credential(Some(("mine", "u")), "a&b")]), "the content is the same");
    assert!(must_pull(&next, IMAGE, &[credential(Some(("mine", "v")), "else")]));

    let later = Timestamp::MAX;
    next.retain(&[image], later);
    assert!(next.pulled("sha256:1").exists());
    next.retain(&[], Timestamp::UNIX_EPOCH);
    assert!(next.pulled("sha256:1").exists(), "it may be of a pull that has just ended");
    next.retain(&[], later);
    assert!(!next.pulled("sha256:1").exists());

    fs::write(next.pulled("sha256:1"), "nonsense").unwrap();
    assert!(must_pull(&next, IMAGE, &[]), "what cannot be read opens nothing");
}

#[test]
fn what_came_for_a_service_account_is_its_pods() {
    // A14.4, A14.6
    let dir = tempfile::tempdir().unwrap();
    let records = records(dir.path(), VerificationPolicy::default());
    let of_account = |name: &str, uid: &str| Credential {
        account: Some(SecretRef { namespace: "ns".into(), name: name.into(), uid: uid.into() }),
        ..credential(None, "s3cret")
    };
    let own = of_account("builder", "u1");
    records.begin(IMAGE).unwrap();
    records.end(IMAGE, Some(("sha256:1", Some(&own))));
    for (credentials, pull, why) in [
        (vec![own.clone()], false, "the same account"),
        (vec![of_account("builder", "u2")], true, "another one of that name"),
        (vec![of_account("other", "u1")], true, "another account"),
        (vec![credential(None, "s3cret")], true, "what the node has is not the account's"),
        (vec![credential(Some(("pull", "u3")), "s3cret")], true, "a secret is none of its"),
        (vec![credential(Some(("pull", "u3")), "x"), own.clone()], false, "one of both kinds"),
    ] {
        assert_eq!(must_pull(&records, IMAGE, &credentials), pull, "{why}");
    }
    let text = fs::read_to_string(records.pulled("sha256:1")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!([{"uid": "u1", "namespace": "ns", "name": "builder"}]);
    assert_eq!(kept["credentialMapping"]["r.example/team/app"]["kubernetesServiceAccounts"], expected);
    // Another account opens it, too, and then nobody needs one.
    records.end(IMAGE, Some(("sha256:1", Some(&of_account("another", "u9")))));
    assert!(!must_pull(&records, IMAGE, &[own]) && !must_pull(&records, IMAGE, &[of_account("another", "u9")]));
    records.end(IMAGE, Some(("sha256:1", Some(&credential(None, "x")))));
    assert!(!must_pull(&records, IMAGE, &[]));
}
