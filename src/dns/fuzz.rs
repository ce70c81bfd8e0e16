//! What must hold for every packet that comes to the name server, for the fuzzer (`fuzz/`) and the tests.

use super::wire::{Code, Encoded, HEADER, Key, LONGEST_UDP, Parsed, parse, query, refuse_unread};

/// Reads a packet as a question and as another server's answer.
///
/// # Panics
/// When what comes of it is wrong.
pub fn packet(packet: &[u8]) {
    let mut out = Vec::new();
    match parse(packet) {
        Parsed::Ignored => {}
        Parsed::Unreadable(code) => {
            refuse_unread(packet, code, &mut out);
            assert!(out.len() == HEADER && out.len() <= packet.len());
        }
        Parsed::Question(question) => {
            let mut key = Key::new();
            question.key_into(&mut key);
            assert_eq!(key.as_bytes().len(), question.section().len() + 1);
            question.refuse(Code::Refused, &mut out);
            assert!(out.len() <= packet.len(), "an answer without content is no longer than the question");
            let labels = question.labels().map(|label| label.len() + 1).sum::<usize>();
            assert_eq!(labels + 5, question.section().len());
            let mut asked = Vec::new();
            query(7, &question, true, &mut asked);
            assert!(asked.len() <= question.section().len() + 23);
        }
    }
    // As an answer of a server it must do no harm either.
    let mut answer = packet.to_vec();
    if answer.len() > 3 {
        answer[2] |= 0x80;
    }
    let Some((encoded, _)) = Encoded::new(answer.clone(), true) else { return };
    let mut ask = answer;
    ask[2] &= 0x01;
    ask[6..12].fill(0);
    if let Parsed::Question(question) = parse(&ask) {
        let turn = packet.iter().map(|byte| usize::from(*byte)).sum();
        for limit in [512, LONGEST_UDP] {
            assert!(encoded.fit(&question, 5, turn, limit, &mut out), "it is the question that it answers");
            assert!(out.len() <= limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn recorded_packets_hold() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/dns");
        let files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 5, "{files:?}");
        files.iter().for_each(|file| super::packet(&std::fs::read(file).unwrap()));
    }

    proptest! {
        #[test]
        fn no_packet_panics_or_is_answered_at_length(
            mut packet in proptest::collection::vec(any::<u8>(), 0..600),
            readable in any::<bool>(),
        ) {
            if readable && packet.len() > 12 {
                packet[2] &= 0x07;
                let extras = packet[11] % 3;
                packet[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, extras]);
            }
            super::packet(&packet);
        }

        /// Recorded packets with some bytes of others.
        #[test]
        fn changed_packets_hold(which in any::<usize>(), changes in proptest::collection::vec(any::<(usize, u8)>(), 1..6)) {
            let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/dns");
            let mut files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
            files.sort();
            let mut packet = std::fs::read(&files[which % files.len()]).unwrap();
            for (at, byte) in changes {
                let at = at % packet.len();
                packet[at] = byte;
            }
            super::packet(&packet);
        }
    }
}
