//! Names that are not the cluster's.

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record};
use stoker::dns::Upstream;
use stoker_model::service::ServiceChange;

use crate::lab::{Lab, SERVER};
use crate::records::service;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn address(of: &str, ttl: u32, last: u8) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(A::new(192, 0, 2, last)))
}

fn soa(zone: &str, ttl: u32, minimum: u32) -> Record {
    Record::from_rdata(name(zone), ttl, RData::SOA(SOA::new(name("ns."), name("me."), 1, 2, 3, 4, minimum)))
}

#[test]
fn other_names_are_asked_for_once_and_kept_as_long_as_they_say() {
    let lab = Lab::new();
    let outside = lab.outside();
    outside.say("example.org. A", ResponseCode::NoError, vec![address("example.org.", 60, 1)], vec![]);
    outside.say("short.org. A", ResponseCode::NoError, vec![address("short.org.", 1, 2)], vec![]);
    outside.say("zero.org. A", ResponseCode::NoError, vec![address("zero.org.", 0, 3)], vec![]);
    outside.say("no.org. A", ResponseCode::NXDomain, vec![], vec![soa("org.", 300, 60)]);
    outside.say("empty.org. AAAA", ResponseCode::NoError, vec![], vec![soa("org.", 60, 300)]);
    outside.say("broken.org. A", ResponseCode::ServFail, vec![], vec![]);
    let many = (0..100).map(|last| address("many.org.", 60, last)).collect();
    outside.say("many.org. A", ResponseCode::NoError, many, vec![]);
    let server = lab.start();
    server.tell([ServiceChange::Complete]);

    for (question, expected, asks) in [
        ("example.org", "192.0.2.1", [1, 0]),
        ("short.org", "192.0.2.2", [1, 0]),
        ("zero.org", "192.0.2.3", [1, 1]),
        ("no.org", "NXDOMAIN", [1, 0]),
        ("empty.org AAAA", "status: NOERROR", [1, 0]),
        ("broken.org", "SERVFAIL", [1, 1]),
    ] {
        for count in asks {
            let before = outside.asked();
            let output = lab.dig(question);
            assert!(output.contains(expected), "{question}: {output}");
            assert_eq!(outside.asked() - before, count, "{question}");
        }
    }
    let negative = lab.dig("no.org");
    assert!(negative.contains("SOA\tns. me. 1 2 3 4 60"), "{negative}");
    std::thread::sleep(Duration::from_millis(1100));
    let before = outside.asked();
    let aged = lab.dig("EXAMPLE.org");
    let left: u32 = aged.split("EXAMPLE.org.\t\t").nth(2).unwrap().split('\t').next().unwrap().trim().parse().unwrap();
    assert!((50..60).contains(&left), "{aged}");
    assert_eq!(outside.asked(), before, "the case of letters does not matter");
    lab.dig("short.org");
    assert_eq!(outside.asked(), before + 1, "its time was over");
    assert_eq!(lab.short("many.org").len(), 100, "asked for on a stream, and given on one");
    assert_eq!(lab.short("-x 203.0.113.9").len(), 0);
}

#[test]
fn aliases_lead_outside() {
    let lab = Lab::new();
    let outside = lab.outside();
    let chain = vec![
        Record::from_rdata(name("www.example.org."), 60, RData::CNAME(CNAME(name("host.example.org.")))),
        address("host.example.org.", 60, 7),
    ];
    outside.say("www.example.org. A", ResponseCode::NoError, chain, vec![]);
    outside.say("www.example.org. AAAA", ResponseCode::NoError, vec![], vec![soa("example.org.", 60, 60)]);
    let server = lab.start();
    server.tell([
        service("shop", "out", r#"{"type":"ExternalName","externalName":"www.example.org"}"#),
        ServiceChange::Complete,
    ]);
    lab.eventually("out.shop.svc.cluster.local CNAME", &["www.example.org."]);
    for _ in 0..2 {
        assert_eq!(lab.short("out.shop.svc.cluster.local"), ["192.0.2.7", "host.example.org.", "www.example.org."]);
    }
    let none = lab.dig("out.shop.svc.cluster.local AAAA");
    assert!(none.contains("status: NOERROR") && none.contains("ANSWER: 1,"), "{none}");
    server.tell([service("shop", "out", r#"{"type":"ExternalName","externalName":"nobody.answers.org"}"#)]);
    lab.eventually("out.shop.svc.cluster.local CNAME", &["nobody.answers.org."]);
}

#[test]
fn the_nodes_file_is_followed_and_never_leads_back_to_us() {
    let lab = Lab::new();
    let outside = lab.outside();
    outside.say("example.org. A", ResponseCode::NoError, vec![address("example.org.", 0, 1)], vec![]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {SERVER}\n")).unwrap();
    let server = lab.start_with(Upstream::ResolvConf(file));
    server.tell([ServiceChange::Complete]);
    let refused = lab.dig("example.org");
    assert!(refused.contains("status: REFUSED"), "{refused}");
}

#[test]
fn a_loop_through_another_server_is_noticed() {
    let lab = Lab::new();
    // A forwarder that asks us whatever it is asked.
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    lab.within(move || {
        let socket = std::net::UdpSocket::bind(crate::lab::OUTSIDE).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let (packet, socket) = (buffer[..length].to_vec(), socket.try_clone().unwrap());
            std::thread::spawn(move || {
                // In the namespace, as threads of a thread are.
                let ask = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                ask.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                ask.send_to(&packet, (SERVER, 53)).unwrap();
                let mut buffer = [0; 4096];
                if let Ok((length, _)) = ask.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], peer);
                }
            });
        }
    });
    is_ready.recv().unwrap();
    let server = lab.start();
    server.tell([ServiceChange::Complete]);
    std::thread::sleep(Duration::from_millis(300));
    let begun = std::time::Duration::from_secs(1);
    let output = lab.dig("example.org");
    assert!(output.contains("status: SERVFAIL"), "{output}");
    let took: u64 = output.split("Query time: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(u128::from(took) < begun.as_millis(), "at once, since the loop is known: {output}");
}
