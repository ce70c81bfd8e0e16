//! The pod network of our own in a whole cluster: addresses, host ports, policies, and an agent that is killed.

use serde_json::{Value, json};

use crate::lab::enclosure::{NODE_IP, NODE_IP6};
use crate::lab::manifest::{HELLO, pod};
use crate::lab::{Lab, text};

/// Fetches a URL from within a pod's network.
fn fetch(lab: &Lab, pod: &str, url: &str) -> bool {
    let id = text(&lab.get(&format!("pod {pod}"))["status"]["containerStatuses"][0]["containerID"]);
    let tasks = lab.ctr("tasks ls").out;
    let task = tasks.lines().find(|line| line.starts_with(&id.replace("containerd://", ""))).expect("it runs");
    let pid = task.split_whitespace().nth(1).expect("a task has a pid");
    let arguments = ["--target", pid, "--net", "curl", "-sS", "--max-time", "2", url];
    lab.run("nsenter", &arguments).out.starts_with("hello from")
}

#[test]
fn pods_have_addresses_host_ports_and_policies() {
    let mut lab = Lab::start();
    // A11.3, A11.8, A11.9
    let ports = json!([{"name": "http", "containerPort": 8080, "hostPort": 8090}]);
    lab.apply(&pod("web").image(HELLO).container("ports", ports).build());
    lab.apply(&pod("client").build());
    lab.apply(&pod("stranger").build());
    for name in ["web", "client", "stranger"] {
        lab.eventually("the pod is ready", |lab| lab.ready_pods(name) == 1);
    }
    // A11.10: the address is the one that the plugin leased.
    let ip = text(&lab.get("pod web")["status"]["podIP"]);
    assert!(lab.dir().join("network/leases").join(&ip).symlink_metadata().is_ok(), "{ip} is not leased");
    let url = format!("http://{ip}:8080/");
    assert!(lab.curl(&url).success && fetch(&lab, "client", &url));
    for address in [NODE_IP, "127.0.0.1"] {
        let url = format!("http://{address}:8090/");
        lab.eventually(&format!("{url} answers"), |lab| lab.curl(&url).success);
    }
    assert!(fetch(&lab, "client", &format!("http://{NODE_IP}:8090/")));

    pods_have_names(&lab);
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "only-clients"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": "http"}]}]},
    });
    lab.apply(&policy);
    assert!(lab.kubectl("get networkpolicies").contains("app=web"));
    lab.eventually("strangers are kept out", |lab| !fetch(lab, "stranger", &url));
    assert!(fetch(&lab, "client", &url), "whom the policy lets in");
    assert!(lab.curl(&url).success, "the node reaches its own pods");

    // Nobody notices that the agent is killed, and the new one opens nothing.
    lab.kill_agent();
    assert!(fetch(&lab, "client", &url) && !fetch(&lab, "stranger", &url));
    lab.start_agent();
    lab.kubectl("label pod stranger app=client --overwrite");
    lab.eventually("a new label counts", |lab| fetch(lab, "stranger", &url));
    lab.kubectl("delete networkpolicy only-clients");
    lab.eventually("nothing is isolated any more", |lab| {
        !lab.run("nft", &["list", "table", "inet", "stoker-policy"]).out.contains(&ip)
    });

    // B2.6: the kube-proxy of kubeadm's DaemonSet has the Services to itself while it is there.
    let ours = |lab: &Lab| lab.run("nft", &["list", "tables"]).out.lines().any(|table| table == "table ip stoker");
    assert!(ours(&lab));
    let mut proxy = pod("kube-proxy").image(HELLO).build();
    proxy["metadata"]["namespace"] = json!("kube-system");
    proxy["metadata"]["labels"]["k8s-app"] = json!("kube-proxy");
    lab.apply(&proxy);
    lab.eventually("our rules are gone", |lab| !ours(lab));
    lab.eventually("the operator is told", |lab| lab.kubectl("get events -A").contains("TwoServiceProxies"));
    assert!(!lab.curl("http://127.0.0.1:10256/livez").success, "the port is kube-proxy's");
    lab.kubectl("delete pod kube-proxy -n kube-system --grace-period=1");
    lab.eventually("our rules are back", |lab| ours(lab) && lab.curl("http://127.0.0.1:10256/livez").success);

    lab.kubectl("delete pod web --grace-period=1");
    lab.eventually("the lease is given back", |lab| {
        lab.dir().join("network/leases").join(&ip).symlink_metadata().is_err()
    });
    assert!(!lab.run("nft", &["list", "ruleset"]).out.contains("8090"), "the host port is closed");
    lab.finish();
}

/// A11.3, A11.8: what `hostname` and `/etc/hosts` say in a pod.
fn pods_have_names(lab: &Lab) {
    let script = "hostname; cat /etc/hosts; echo the end; sleep 100000";
    let long = format!("{}.b", "a".repeat(62));
    let named = |name: &str| pod(name).script(script).spec("subdomain", json!("group"));
    let of_node = pod("of-node").script(script).spec("hostNetwork", json!(true)).spec("dnsPolicy", json!("Default"));
    let whole = named("whole").spec("hostname", json!("one")).spec("setHostnameAsFQDN", json!(true));
    let other = named("other").spec("hostnameOverride", json!("over.example.host"));
    let too_long = named("too-long").spec("subdomain", json!("s".repeat(60))).spec("setHostnameAsFQDN", json!(true));
    let aliases = json!([{"ip": "192.0.2.9", "hostnames": ["x", "y"]}]);
    for manifest in [named("part"), whole, other, of_node, too_long] {
        lab.apply(&manifest.build());
    }
    let mut with_long_name =
        pod(&long).container("name", json!("main")).script(script).spec("hostAliases", aliases).build();
    // A label may not be as long.
    with_long_name["metadata"]["labels"] = json!({});
    lab.apply(&with_long_name);
    let said = |name: &str| {
        let mut said = String::new();
        lab.eventually(&format!("{name} says its name"), |lab| {
            said = lab.try_kubectl(&format!("logs {name}")).out;
            said.ends_with("the end\n")
        });
        let (hostname, hosts) = said.split_once('\n').expect("two lines");
        (hostname.to_owned(), hosts.trim_end_matches("the end\n").to_owned())
    };
    let begin = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
    let domain = "group.default.svc.cluster.local";
    let aliases = "\n# Entries added by HostAliases.\n192.0.2.9\tx\ty\n";
    for (name, hostname, names, end) in [
        ("part", "part".to_owned(), format!("part.{domain}\tpart"), ""),
        ("whole", format!("one.{domain}"), format!("one.{domain}\tone"), ""),
        ("other", "over.example.host".to_owned(), "over.example.host".to_owned(), ""),
        (long.as_str(), "a".repeat(62), "a".repeat(62), aliases),
    ] {
        let ip = text(&lab.get(&format!("pod {name}"))["status"]["podIP"]);
        assert_eq!(said(name), (hostname, format!("{begin}{ip}\t{names}\n{end}")), "{name}");
    }
    let (hostname, hosts) = said("of-node");
    assert_eq!(hostname, lab.run("hostname", &[]).out.trim());
    let of_node = lab.run("cat", &["/etc/hosts"]).out;
    assert_eq!(hosts, format!("# Kubernetes-managed hosts file (host network).\n{of_node}"));
    lab.eventually("the long name is told of", |lab| {
        let told = format!(
            "FQDN too-long.{}.default.svc.cluster.local is too long (64 characters is the max, 95 characters requested)",
            "s".repeat(60)
        );
        lab.kubectl("get events --field-selector involvedObject.name=too-long -o jsonpath={.items[*].message}").contains(&told)
    });
    let waits = lab.get("pod too-long")["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    assert_eq!(waits, "ContainerCreating");
    lab.kubectl(&format!("delete pod part whole other of-node too-long {long} --grace-period=1"));
}

/// A11.10 B1.18 B1.3 B1.4: pods, nodes and Services of both families, with our own API server.
#[test]
fn both_families_reach_pods_services_and_node_ports() {
    let lab = Lab::start_dual_stack();
    let strings =
        |value: &serde_json::Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
    assert_eq!(strings(&lab.get("node lab")["spec"]["podCIDRs"]).len(), 2);
    let node_ips = lab.kubectl("get node lab -o jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}");
    assert_eq!(node_ips, format!("{NODE_IP} {NODE_IP6}"));
    lab.kubectl(&format!("apply -f {}/make/templates/kube-dns.yaml", env!("CARGO_MANIFEST_DIR")));
    lab.apply(&pod("web").image(HELLO).build());
    lab.apply(&pod("client").build());
    for name in ["web", "client"] {
        lab.eventually("the pod is ready", |lab| lab.ready_pods(name) == 1);
    }
    let status = lab.get("pod web")["status"].clone();
    let ips: Vec<String> = status["podIPs"].as_array().into_iter().flatten().map(|ip| text(&ip["ip"])).collect();
    assert!(matches!(&ips[..], [v4, v6] if v4.contains('.') && v6.contains(':')), "{ips:?}");
    for host in [ips[0].clone(), format!("[{}]", ips[1])] {
        let url = format!("http://{host}:8080/");
        assert!(fetch(&lab, "client", &url) && lab.curl(&url).success, "{url}");
    }

    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]},
    });
    lab.apply(&service);
    let cluster_ips = strings(&lab.get("service web")["spec"]["clusterIPs"]);
    assert_eq!(strings(&lab.get("service web")["spec"]["ipFamilies"]), ["IPv4", "IPv6"]);
    let urls = [
        format!("http://{}:80/", cluster_ips[0]),
        format!("http://[{}]:80/", cluster_ips[1]),
        format!("http://{NODE_IP}:30080/"),
        format!("http://[{NODE_IP6}]:30080/"),
    ];
    for url in &urls {
        lab.eventually(&format!("{url} answers"), |lab| lab.curl(url).success && fetch(lab, "client", url));
    }
    let web = format!("hello from web ({})\n", ips[1]);
    assert_eq!(lab.curl(&urls[1]).out, web, "each family leads to pods of its own");

    // Down to one family: the other refuses, and the first goes on.
    lab.kubectl(r#"patch service web -p {"spec":{"ipFamilyPolicy":"SingleStack"}}"#);
    assert_eq!(strings(&lab.get("service web")["spec"]["clusterIPs"]), cluster_ips[..1]);
    lab.eventually("the second family ends", |lab| !lab.curl(&urls[1]).success && !lab.curl(&urls[3]).success);
    assert!(lab.curl(&urls[0]).success && lab.curl(&urls[2]).success);
    // And the other way round: a Service of the other family alone.
    let six = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "six"},
        "spec": {"ipFamilies": ["IPv6"], "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    lab.apply(&six);
    let ip = text(&lab.get("service six")["spec"]["clusterIP"]);
    lab.eventually("it answers", |lab| fetch(lab, "client", &format!("http://[{ip}]/")));
    lab.kubectl("delete service web six");
    lab.kubectl("delete pod web client --grace-period=1");
    lab.finish();
}

/// B2.7, B2.8: the proxy alone, called as kube-proxy is called, with nothing else of ours on the node; B2.6: as the ServiceAccount and
/// with the files that kubeadm gives to kube-proxy.
#[test]
fn the_proxy_runs_alone_with_the_flags_of_kube_proxy() {
    let mut lab = Lab::new();
    lab.start_control_plane();
    lab.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "lab"}}));
    let status = format!(r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{NODE_IP}"}}]}}}}"#);
    lab.kubectl(&format!("patch node lab --subresource=status --type=merge -p {status}"));
    let (stoker, dir) = (lab.stoker(), lab.dir().display().to_string());
    lab.kubectl("create serviceaccount kube-proxy -n kube-system");
    std::fs::write(lab.dir().join("token"), lab.kubectl("create token kube-proxy -n kube-system")).expect("written");
    let mut kubeconfig: Value =
        serde_json::from_str(&lab.kubectl("config view --raw -o json")).expect("kubectl shows its configuration");
    kubeconfig["users"][0]["user"] = json!({"tokenFile": format!("{dir}/token")});
    std::fs::write(lab.dir().join("kubeconfig.conf"), kubeconfig.to_string()).expect("written");

    // B1.1: what the watches of a proxy ask for, this server can tell apart.
    for (name, extra) in [
        ("plain", json!({"spec": {"ports": [{"port": 80}]}})),
        ("headless", json!({"spec": {"clusterIP": "None", "selector": {"app": "none"}, "ports": [{"port": 80}]}})),
        (
            "theirs",
            json!({"metadata": {"name": "theirs", "labels": {"service.kubernetes.io/service-proxy-name": "other"}}, "spec": {"ports": [{"port": 80}]}}),
        ),
    ] {
        let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}});
        extra.as_object().expect("fields").iter().for_each(|(field, value)| service[field] = value.clone());
        lab.apply(&service);
    }
    let names = |path: &str| {
        let list: Value = serde_json::from_str(&lab.kubectl(&format!("get --raw {path}"))).expect("a list");
        list["items"].as_array().into_iter().flatten().map(|item| text(&item["metadata"]["name"])).collect::<Vec<_>>()
    };
    let selected = names(
        "/api/v1/services?fieldSelector=spec.clusterIP%21%3DNone&labelSelector=%21service.kubernetes.io/service-proxy-name",
    );
    assert_eq!(selected, ["kubernetes", "plain"]);
    let slices = |selector: &str| names(&format!("/apis/discovery.k8s.io/v1/endpointslices{selector}"));
    lab.eventually("it has a slice", |_| slices("").iter().any(|name| name.starts_with("headless")));
    let selected = slices("?labelSelector=%21service.kubernetes.io/headless");
    assert!(!selected.is_empty() && !selected.iter().any(|name| name.starts_with("headless")), "{selected:?}");

    let proxy = |arguments: &str| {
        let words: Vec<&str> = std::iter::once("kube-proxy").chain(arguments.split_whitespace()).collect();
        lab.run(&stoker, &words)
    };
    assert_eq!(proxy("--version").out, "Kubernetes v1.36.2\n");

    // The flags as a file, which takes the place of the flags.
    let flags = format!(
        "--kubeconfig={dir}/kubeconfig.conf --proxy-mode=nftables --cluster-cidr=10.244.0.0/16 \
         --nodeport-addresses=primary --healthz-bind-address=127.0.0.1:10300 --metrics-bind-address=127.0.0.1:10301"
    );
    let file = format!("{dir}/kube-proxy.yaml");
    proxy(&format!("{flags} --write-config-to={file}")).expect_success("kube-proxy --write-config-to");
    let written = std::fs::read_to_string(&file).expect("written");
    assert!(written.contains("clusterCIDR: 10.244.0.0/16"));
    let changed = written
        .replace("oomScoreAdj: -999", "oomScoreAdj: 500")
        .replace("enableProfiling: false", "enableProfiling: true");
    std::fs::write(&file, &changed).expect("written");
    let sysctl = || lab.run("cat", &["/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait"]).out;
    lab.run("nft", &["add table ip tracked"]).expect_success("nft");
    lab.run("nft", &["add chain ip tracked c { type filter hook input priority 0; }"]).expect_success("nft");
    lab.run("nft", &["add rule ip tracked c ct state new accept"]).expect_success("nft");
    proxy(&format!("--config={file} --init-only")).expect_success("kube-proxy --init-only");
    assert_eq!(sysctl().trim(), "3600");
    let tables = || lab.run("nft", &["list", "tables"]).out;
    assert!(!tables().contains("stoker"), "nothing more was done: {}", tables());

    let api = "https://10.96.0.1/readyz";
    let answers = || lab.run("curl", &["-sSk", "--max-time", "3", api]).out == "ok";
    assert!(!answers());
    let line = format!(
        "{stoker} kube-proxy --config={file} --hostname-override=lab --v=2 > {dir}/log/proxy.log 2>&1 & echo $!"
    );
    let pid = lab.run("sh", &["-c", &line]).expect_success("kube-proxy");
    lab.eventually("the Service kubernetes answers", |_| answers());
    assert_eq!(lab.curl("http://127.0.0.1:10301/proxyMode").out, "nftables");
    lab.eventually("it is well", |lab| lab.curl("http://127.0.0.1:10300/healthz").success);
    // B2.5, B2.2
    assert_eq!(lab.run("cat", &[&format!("/proc/{}/oom_score_adj", pid.trim())]).out.trim(), "500");
    let put = lab.run("curl", &["-sS", "-X", "PUT", "-d", "5", "http://127.0.0.1:10301/debug/flags/v"]).out;
    assert_eq!(put, "successfully set klog.logging.verbosity to 5\n");
    let hard = format!("{dir}/hard.yaml");
    std::fs::write(&hard, changed.replace("bindAddressHardFail: false", "bindAddressHardFail: true")).expect("written");
    let ended = proxy(&format!("--config={hard} --hostname-override=lab"));
    assert!(!ended.success && ended.err.contains("cannot listen on 127.0.0.1:1030"), "{}", ended.err);
    assert!(answers(), "what the other one wrote is untouched");
    lab.run("kill", &["-TERM", pid.trim()]).expect_success("kill");
    lab.eventually("it ends", |lab| !lab.curl("http://127.0.0.1:10300/livez").success);
    assert!(answers(), "and its rules stay");
    proxy("--cleanup").expect_success("kube-proxy --cleanup");
    assert!(!answers() && !tables().contains("stoker"), "{}", tables());

    let wrong = proxy("--cluster-cidr=10.244.0.0");
    assert!(!wrong.success && wrong.err.contains("clusterCIDR"), "{}", wrong.err);
}
