//! Balancing chains, made on first use: rules as the kernel's expressions, with the registers that nft itself uses, so
//! that `nft list` prints them as the text they stand for.

use super::layout;
use super::message::{CREATE, Kind, Messages, family_number};
use crate::service::diff::{Balance, LOCAL_SLOTS};
use crate::service::frontend::Family;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// `NFT_REG_VERDICT`.
const REG_VERDICT: u32 = 0;
/// `NFT_REG_1`: 16 bytes, the same as the four 4-byte registers from 8.
const REG_1: u32 = 1;
/// `NFT_REG_2`: the 16 bytes after these.
const REG_2: u32 = 2;
/// `NFT_REG32_01`: the 4-byte register after the first one.
const REG32_01: u32 = 9;
/// `NFT_META_L4PROTO`.
const META_L4PROTO: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `NFT_NG_RANDOM`.
const RANDOM: u32 = 1;
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;
/// `NFT_JUMP` and `NFT_GOTO`, which are -3 and -4.
const JUMP: u32 = 0xffff_fffd;
const GOTO: u32 = 0xffff_fffc;

/// Appends the chain of a balance without affinity, with its rules.
pub(super) fn write_balance_chain(m: &mut Messages, family: Family, node_port: bool, balance: Balance) {
    let name = layout::balance_chain(balance, node_port);
    new_chain(m, family, &name);
    if balance.masquerade {
        // Marks, then goes on as those do that need no masquerade.
        let plain = layout::balance_chain(Balance { masquerade: false, ..balance }, node_port);
        rule(m, family, &name, |m| verdict(m, JUMP, layout::MARK));
        rule(m, family, &name, |m| verdict(m, GOTO, &plain));
        return;
    }
    rule(m, family, &name, |m| {
        // Only below a match of the protocol does nft accept `th dport` in a mapping.
        meta_protocol(m, REG_1);
        lookup(m, layout::PROTOCOLS, None);
        expression(m, "numgen", |m| {
            m.number(1, REG_1);
            m.number(2, balance.count);
            m.number(3, RANDOM);
            if balance.local {
                m.number(4, LOCAL_SLOTS);
            }
        });
        let mut register = REG32_01;
        if !node_port {
            let (offset, length) = match family {
                Family::Ipv4 => (16, 4),
                Family::Ipv6 => (24, 16),
            };
            payload(m, register, NETWORK, offset, length);
            register += length / 4;
        }
        meta_protocol(m, register);
        payload(m, register + 1, TRANSPORT, 2, 2);
        lookup(m, if node_port { "nodeport-endpoints" } else { "endpoints" }, Some(REG_1));
        expression(m, "nat", |m| {
            m.number(1, DNAT);
            m.number(2, u32::from(family_number(family)));
            m.number(3, REG_1);
            // The port follows the address in the map's value.
            m.number(5, if family == Family::Ipv4 { REG32_01 } else { REG_2 });
        });
    });
}

fn new_chain(m: &mut Messages, family: Family, name: &str) {
    m.message(Kind::NewChain, CREATE, family_number(family), |m| {
        m.text(CHAIN_TABLE, layout::TABLE);
        m.text(CHAIN_NAME, name);
    });
}

fn rule(m: &mut Messages, family: Family, chain: &str, expressions: impl FnOnce(&mut Messages)) {
    const APPEND: u16 = 0x800;
    m.message(Kind::NewRule, CREATE | APPEND, family_number(family), |m| {
        m.text(RULE_TABLE, layout::TABLE);
        m.text(RULE_CHAIN, chain);
        m.nested(RULE_EXPRESSIONS, expressions);
    });
}

fn expression(m: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    m.nested(LIST_ELEM, |m| {
        m.text(EXPR_NAME, name);
        m.nested(EXPR_DATA, data);
    });
}

fn meta_protocol(m: &mut Messages, register: u32) {
    expression(m, "meta", |m| {
        m.number(1, register);
        m.number(2, META_L4PROTO);
    });
}

fn payload(m: &mut Messages, register: u32, base: u32, offset: u32, length: u32) {
    expression(m, "payload", |m| {
        m.number(1, register);
        m.number(2, base);
        m.number(3, offset);
        m.number(4, length);
    });
}

fn lookup(m: &mut Messages, set: &str, into: Option<u32>) {
    expression(m, "lookup", |m| {
        m.text(1, set);
        m.number(2, REG_1);
        if let Some(register) = into {
            m.number(3, register);
        }
    });
}

fn verdict(m: &mut Messages, code: u32, chain: &str) {
    expression(m, "immediate", |m| {
        m.number(1, REG_VERDICT);
        m.nested(2, |m| {
            m.nested(2, |m| {
                m.number(1, code);
                m.text(2, chain);
            });
        });
    });
}
