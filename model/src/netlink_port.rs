//! Port numbers of this process's netlink sockets: whoever listens to what others change leaves out what they caused.
//!
//! A port is bit 31, the process's number in 22 bits (`PID_MAX_LIMIT`), and 8 bits that count its sockets. The kernel itself gives
//! a process its own number first, and ports from the upper half of the numbers afterwards; a port that is taken is passed over.

const BY_US: u32 = 1 << 31;
const COUNT_BITS: u32 = 8;

/// Ports for sockets that change tables and need not be heard; try one after the other.
pub fn own_ports() -> impl Iterator<Item = u32> {
    (0..1 << COUNT_BITS).map(|count| tag(std::process::id()) | count)
}

/// A classic BPF program for a socket that listens (`SO_ATTACH_FILTER`): opcode, jump if true, jump if false, and operand of each
/// instruction. It refuses datagrams of which the first message was caused by one of [`own_ports`]; the kernel never puts changes
/// that different sockets asked for into one.
pub fn foreign_only() -> [(u16, u8, u8, u32); 5] {
    const LOAD_WORD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Where a netlink header has its port.
    const PORT: u32 = 12;
    // BPF loads words in network order.
    let loaded = |word: u32| u32::from_be_bytes(word.to_ne_bytes());
    let mask = !((1 << COUNT_BITS) - 1);
    [
        (LOAD_WORD, 0, 0, PORT),
        (AND, 0, 0, loaded(mask)),
        (JUMP_IF_EQUAL, 0, 1, loaded(tag(std::process::id()))),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, u32::MAX),
    ]
}

fn tag(process: u32) -> u32 {
    BY_US | process << COUNT_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with the program and a datagram: how many bytes of it are kept.
    fn run(datagram: &[u8]) -> u32 {
        let (mut accumulator, mut at) = (0_u32, 0);
        let program = foreign_only();
        loop {
            let (code, jump_if_true, jump_if_false, operand) = program[at];
            at += 1;
            match code {
                0x20 => accumulator = u32::from_be_bytes(*datagram[operand as usize..].first_chunk().unwrap()),
                0x54 => accumulator &= operand,
                0x15 if accumulator == operand => at += usize::from(jump_if_true),
                0x15 => at += usize::from(jump_if_false),
                0x06 => return operand,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn datagram(port: u32) -> Vec<u8> {
        [&[20, 0, 0, 0, 15, 10, 0, 0, 1, 0, 0, 0][..], &port.to_ne_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn only_what_others_caused_is_heard() {
        let own = std::process::id();
        assert!(own_ports().all(|port| run(&datagram(port)) == 0));
        for foreign in [0, own, 4711, tag(own + 1), tag(own - 1) | 255, tag(own) & !BY_US, u32::MAX] {
            assert_eq!(run(&datagram(foreign)), u32::MAX, "{foreign:#x}");
        }
    }
}
