//! Lists of elements, cut into what one netlink message can carry, and named for errors.

use std::borrow::Cow;
use std::io;

use super::elements;
use crate::service::diff::{Key, Value};
use crate::service::frontend::{Family, HashMap};
use crate::service::netlink::message::Kind;

/// Which part of a transaction the kernel refused.
pub(super) enum Refused {
    /// Elements, by their place in the list of parts.
    Part(usize, io::Error),
    /// Clients of session affinity.
    Clients(io::Error),
    /// A chain, or the whole.
    Other(io::Error),
}

/// Elements that one message changes.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) family: Family,
    pub(super) set: Cow<'static, str>,
    pub(super) elements: Vec<(Key, Value)>,
}

/// Sorts a list into parts of one family and one set that fit one message.
pub(super) fn parts(kind: Kind, list: &[(Key, Value)]) -> Vec<Part> {
    let mut growing: HashMap<_, Vec<(Key, Value)>> = HashMap::default();
    let mut full = Vec::new();
    for &(key, value) in list {
        let (family, set) = (elements::family_of(&key), elements::set_of(&key, &value));
        let part = growing.entry((family, set.clone())).or_default();
        part.push((key, value));
        if part.len() == elements::LIST_ELEMENTS {
            full.push(Part { kind, family, set, elements: std::mem::take(part) });
        }
    }
    let rest = growing.into_iter().filter(|(_, elements)| !elements.is_empty());
    full.extend(rest.map(|((family, set), elements)| Part { kind, family, set, elements }));
    full
}

/// What the part does, for an error: its only element, or the first of many.
impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.kind == Kind::NewElements { "add" } else { "delete" };
        let preposition = if self.kind == Kind::NewElements { "to" } else { "from" };
        let (key, value) = &self.elements[0];
        write!(f, "{verb} {key} = {value} {preposition} {}", self.set)
    }
}
