//! What must hold for every datagram that comes over netlink, for the fuzzer (`fuzz/`) and the tests.

use super::netlink::message::{Attributes, Kind, received};
use super::{ipvs, nftables};

/// Deeper than anything that the kernel nests.
const DEPTH: usize = 8;

/// Reads a datagram as each of our readers does.
///
/// # Panics
/// Never, which is the point.
pub fn datagram(bytes: &[u8]) {
    for message in received(bytes) {
        let _ = (message.error(), message.is_done(), message.is(Kind::NewGeneration));
        nftables::read_anything(message);
        ipvs::read_anything(message);
        walk(message.attributes(), 0);
    }
    walk(Attributes::of(bytes), 0);
}

fn walk(attributes: Attributes<'_>, depth: usize) {
    for (kind, value) in attributes {
        let _ = (attributes.text(kind), attributes.nested(kind));
        if depth < DEPTH {
            walk(Attributes::of(value), depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn corpus() -> Vec<Vec<u8>> {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/netlink");
        let mut files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    #[test]
    fn recorded_datagrams_hold() {
        let all = corpus();
        assert!(all.len() > 5);
        all.iter().for_each(|bytes| super::datagram(bytes));
    }

    proptest! {
        #[test]
        fn any_datagram_holds(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::datagram(&bytes);
        }

        #[test]
        fn changed_datagrams_hold(which in any::<usize>(), changes in proptest::collection::vec(any::<(usize, u8)>(), 1..6)) {
            let all = corpus();
            let mut bytes = all[which % all.len()].clone();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            super::datagram(&bytes);
        }
    }
}
