//! Tables of who gets which devices.

use super::*;

const GPU: &str = "example.com/gpu";

fn pool(devices: &[(&str, bool, &[i64])]) -> Pool {
    let mut pool = Pool::default();
    pool.update(GPU, list(devices));
    pool
}

fn list(devices: &[(&str, bool, &[i64])]) -> BTreeMap<String, Device> {
    let device = |(id, healthy, nodes): &(&str, bool, &[i64])| {
        ((*id).to_owned(), Device { healthy: *healthy, nodes: nodes.to_vec() })
    };
    devices.iter().map(device).collect()
}

fn ids(ids: &[&str]) -> Ids {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

struct Case {
    pod: PodUid,
    reusable: Ids,
}

impl Case {
    fn new(pod: &str) -> Self {
        Self { pod: PodUid::new(pod), reusable: Ids::new() }
    }

    fn ask(&self, count: usize) -> Ask<'_> {
        Ask { pod: &self.pod, container: "c", resource: GPU, count, reusable: &self.reusable, affinity: None }
    }

    /// Gives what is chosen.
    fn take(&self, pool: &mut Pool, count: usize, preferred: &[&str]) -> Result<Ids, String> {
        let ask = self.ask(count);
        let Some(choice) = pool.choose(&ask)? else { return Ok(Ids::new()) };
        let chosen = choice.finish(&ids(preferred));
        pool.give(&ask, &chosen, ContainerAllocateResponse::default());
        Ok(chosen)
    }
}

#[test]
fn a_device_has_one_owner_who_keeps_it() {
    // A15.5
    let mut pool = pool(&[("a", true, &[]), ("b", true, &[]), ("c", false, &[])]);
    let (one, two) = (Case::new("one"), Case::new("two"));
    assert_eq!(one.take(&mut pool, 1, &["b"]).unwrap(), ids(&["b"]), "what the plugin prefers");
    assert_eq!(one.take(&mut pool, 1, &[]).unwrap(), ids(&[]), "asked again it has what it had");
    assert_eq!(two.take(&mut pool, 1, &["b"]).unwrap(), ids(&["a"]), "what somebody has is no choice");
    let three = Case::new("three");
    let text = format!("requested number of devices unavailable for {GPU}. Requested: 1, Available: 0");
    assert_eq!(three.take(&mut pool, 1, &[]), Err(text));
    let text = format!("pod \"one\" container \"c\" changed request for resource \"{GPU}\" from 1 to 2");
    assert_eq!(one.take(&mut pool, 2, &[]), Err(text));
    pool.given.remove(&one.pod);
    assert_eq!(three.take(&mut pool, 1, &["c"]).unwrap(), ids(&["b"]), "an unhealthy one is no choice");
}

#[test]
fn what_cannot_be_given_is_told_in_upstreams_words() {
    // A15.5, A6.3
    let case = Case::new("p");
    let text = format!("cannot allocate unregistered device {GPU}");
    assert_eq!(case.take(&mut Pool::default(), 1, &[]), Err(text));
    let mut sick = pool(&[("a", false, &[])]);
    let text = format!("no healthy devices present; cannot allocate unhealthy devices {GPU}");
    assert_eq!(case.take(&mut sick, 1, &[]), Err(text));
    let mut pool = pool(&[("a", true, &[]), ("b", true, &[])]);
    case.take(&mut pool, 1, &["a"]).unwrap();
    pool.update(GPU, list(&[("a", false, &[]), ("b", true, &[])]));
    let text = format!("previously allocated devices are no longer healthy; cannot allocate unhealthy devices {GPU}");
    assert_eq!(case.take(&mut pool, 1, &[]), Err(text));
}

#[test]
fn what_init_containers_had_is_taken_first() {
    // A15.5
    let mut pool = pool(&[("a", true, &[]), ("b", true, &[]), ("c", true, &[])]);
    let mut case = Case::new("p");
    pool.give(&Ask { container: "init", ..case.ask(1) }, &ids(&["b"]), ContainerAllocateResponse::default());
    case.reusable = ids(&["b"]);
    assert_eq!(case.take(&mut pool, 2, &["c"]).unwrap(), ids(&["b", "c"]));
}

#[test]
fn counts_follow_the_plugin() {
    // A15.5
    let count = |pool: &Pool| pool.counts().get(GPU).map(|c| (c.capacity, c.allocatable));
    let mut pool = pool(&[("a", true, &[]), ("b", true, &[])]);
    assert_eq!(count(&pool), Some((2, 2)));
    pool.update(GPU, list(&[("a", false, &[]), ("b", true, &[])]));
    assert_eq!(count(&pool), Some((2, 1)), "unhealthy ones stay in the capacity");
    let at = Duration::from_secs(1000);
    pool.stopped(GPU, at);
    assert_eq!(count(&pool), Some((2, 0)));
    assert_eq!(pool.expire(at + Duration::from_secs(299)), Some(at + Duration::from_secs(300)));
    assert_eq!(count(&pool), Some((2, 0)));
    assert_eq!(pool.expire(at + Duration::from_secs(300)), None);
    assert_eq!(count(&pool), Some((0, 0)), "after five minutes there are none");
    assert!(!pool.knows(GPU));
    pool.registered(GPU);
    pool.update(GPU, list(&[("a", true, &[])]));
    assert_eq!(count(&pool), Some((1, 1)));
}

#[test]
fn the_owners_of_devices_that_change_are_told() {
    // A15.15
    let mut pool = pool(&[("a", true, &[]), ("b", true, &[])]);
    let case = Case::new("p");
    case.take(&mut pool, 1, &["a"]).unwrap();
    assert!(pool.update(GPU, list(&[("a", true, &[]), ("b", false, &[])])).is_empty());
    assert_eq!(pool.update(GPU, list(&[("a", false, &[]), ("b", false, &[])])), [case.pod.clone()].into());
    assert_eq!(pool.update(GPU, list(&[("b", false, &[])])), [case.pod].into(), "a device may vanish");
}

#[test]
fn devices_are_near_where_the_container_is() {
    // A15.3
    let mut pool = pool(&[("a", true, &[0]), ("b", true, &[1]), ("c", true, &[1]), ("d", true, &[])]);
    let case = Case::new("p");
    let node = |n: usize| Some(NumaSet::of([n]));
    let choose = |pool: &Pool, count, affinity, preferred: &[&str]| {
        let choice = pool.choose(&Ask { affinity, ..case.ask(count) }).unwrap().unwrap();
        choice.finish(&ids(preferred))
    };
    assert_eq!(choose(&pool, 1, node(1), &[]), ids(&["b"]));
    assert_eq!(choose(&pool, 1, node(1), &["c"]), ids(&["c"]));
    assert_eq!(choose(&pool, 1, node(1), &["a"]), ids(&["b"]), "the plugin chooses among those that fit");
    assert_eq!(choose(&pool, 2, node(0), &["c"]), ids(&["a", "c"]));
    assert_eq!(choose(&pool, 3, node(1), &[]), ids(&["a", "b", "c"]), "the one that is nowhere comes last");
    let hints = |pool: &Pool, count| {
        let all = pool.hints(&case.ask(count), &[0, 1]).unwrap();
        all.into_iter().map(|h| (h.affinity.unwrap().nodes().collect::<Vec<_>>(), h.preferred)).collect::<Vec<_>>()
    };
    assert_eq!(hints(&pool, 1), [(vec![0], true), (vec![1], true), (vec![0, 1], false)]);
    assert_eq!(hints(&pool, 2), [(vec![1], true), (vec![0, 1], false)]);
    assert_eq!(hints(&pool, 3), [(vec![0, 1], true)]);
    assert_eq!(hints(&pool, 5), []);
    pool.update(GPU, list(&[("a", true, &[])]));
    assert_eq!(pool.hints(&case.ask(1), &[0, 1]), None, "devices that are nowhere do not care");
}
