//! The lab itself: what runs in it is invisible outside and ends with the test.

use std::path::Path;

use crate::lab::enclosure::Enclosure;

#[test]
fn an_enclosure_leaves_nothing() {
    let enclosure = Enclosure::new();
    let (name, dir) = (enclosure.name.clone(), enclosure.dir.clone());
    let inside = |script: &str| {
        let output = enclosure.command("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Its own network, processes and cgroup root.
    assert!(inside("ip -o link").lines().all(|line| line.contains(" lo:") || line.contains(" node0:")));
    assert!(inside("ls -d /proc/[0-9]* | wc -l").trim().parse::<u32>().unwrap() < 6);
    let groups = format!("cat /proc/self/cgroup; find /sys/fs/cgroup -name {name}");
    assert!(!inside(&groups).contains(&name), "{}", inside(&groups));
    // A switch of the whole machine is not.
    let panic = || std::fs::read_to_string("/proc/sys/kernel/panic").unwrap();
    let before = panic();
    assert_eq!(inside("cat /proc/sys/kernel/panic"), before);
    inside("echo 77 > /proc/sys/kernel/panic");
    assert_eq!((inside("cat /proc/sys/kernel/panic").trim(), panic()), ("77", before));
    // A daemon that nobody stops, in a cgroup of its own.
    inside("for t in /sys/fs/cgroup /sys/fs/cgroup/*; do [ ! -e $t/cgroup.procs ] || mkdir -p $t/kubepods/pod1; done");
    inside("setsid sleep 3333 >/dev/null 2>&1 &");
    drop(enclosure);
    assert!(!dir.exists());
    for tree in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
        let group = tree.unwrap().path().join(&name);
        assert!(!group.exists(), "{} is left", group.display());
    }
    assert!(!Path::new("/sys/fs/cgroup").join(&name).exists());
    let processes = std::process::Command::new("ps").args(["-eo", "args"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&processes.stdout).contains("sleep 3333"));
}
