//! The tables `ip stoker` and `ip6 stoker` in the kernel.
//!
//! [`Kernel::prepare`] loads the fixed part as nft text where it is not there yet, [`Kernel::read`] dumps every element,
//! [`Kernel::apply`] writes element operations and the chains that they need first in one transaction, over netlink. What
//! the elements mean is decided elsewhere (`diff`).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::config::ServiceConfig;
use super::data_path::{DataPath, Doubt, Listening};
use super::diff::{Balance, Elements, Key, Operations, StickyChange, Table, Value, Verdict};
use super::frontend::{Family, Frontend, Place};
use super::netlink::message::{self, CREATE, DUMP, Kind, Messages, Received, family_number};
use super::netlink::socket::{Dumped, Socket};
use super::owner::ServiceError;

mod beside_ipvs;
mod chains;
mod elements;
mod layout;
mod listener;
mod loader;
mod parts;
mod sticky;

use listener::{Ears, TableListener};
use loader::run_nft;
use parts::{Part, Refused, parts};
use sticky::{ClientList, Clients};

const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const SET_NAME: u16 = 2;
const ELEMENTS: u16 = 3;
const RULE_CHAIN: u16 = 2;
/// Clients end on their own while they are moved; more often than this in a row they do not.
const CLIENT_ATTEMPTS: usize = 5;
/// So many new elements make one transaction where nothing is there yet. The kernel's hash tables grow after a transaction and
/// not in it: 200 000 elements at once take three times as long, for each goes through the long lists of a small table.
const FILL_AT_ONCE: usize = 4_000;
/// Of larger transactions we do not listen to the echo: its messages would not fit the listener's buffer.
const HEARD: usize = 500;
/// A dump that others interrupt this often is given up until the next attempt.
const DUMP_ATTEMPTS: usize = 20;

/// What went wrong with the kernel's tables.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No socket.
    #[error("cannot open a netlink socket to nf_tables: the agent needs CAP_NET_ADMIN in its network namespace")]
    Open(#[source] io::Error),
    /// nft could not be started.
    #[error("cannot run {program}: install the nftables package, version 1.0.2 or newer")]
    NoNft {
        /// What was to be run.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// nft did not take our text.
    #[error(
        "nft refused the fixed part of table {family:?} stoker, which may mean that the kernel lacks nf_tables, NAT or fib: {message}"
    )]
    Refused {
        /// Whose table.
        family: Family,
        /// What nft said.
        message: String,
    },
    /// The kernel refused the transaction; nothing of it took effect.
    #[error("the kernel refused to {what}")]
    Rejected {
        /// The failing part, named.
        what: String,
        /// Its reason.
        source: io::Error,
    },
    /// Sending or receiving failed.
    #[error("lost touch with nf_tables while trying to {what}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Our tables of one network namespace.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    config: ServiceConfig,
    /// Makes the nft text of one family's fixed part, with a stamp.
    fixed_part: fn(Family, &ServiceConfig, &str) -> String,
    chains: BTreeMap<Family, BTreeSet<String>>,
    sets: BTreeMap<Family, BTreeSet<String>>,
    /// Netlink ports of the nft processes that loaded the fixed part last: what they did is no foreign change.
    loaders: Arc<Mutex<VecDeque<u32>>>,
    /// Our transactions since `first_generation`.
    own_transactions: u32,
    /// The kernel's count before the last reconciliation.
    first_generation: Option<u32>,
    /// The listener that the owner has.
    ears: Option<Arc<Ears>>,
    /// What nobody heard while we did not listen.
    missed: Doubt,
}

impl Kernel {
    /// Connects to the kernel of the calling thread's network namespace; changes nothing.
    pub fn open(config: ServiceConfig) -> Result<Self, NftError> {
        Self::with(config, layout::text)
    }

    /// As [`Kernel::open`], for the rules that IPVS needs beside it: marks, refusals and source ranges.
    pub fn open_beside_ipvs(config: ServiceConfig) -> Result<Self, NftError> {
        Self::with(config, beside_ipvs::text)
    }

    fn with(config: ServiceConfig, fixed_part: fn(Family, &ServiceConfig, &str) -> String) -> Result<Self, NftError> {
        let socket = Socket::open().map_err(NftError::Open)?;
        Ok(Self {
            socket,
            config,
            fixed_part,
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            loaders: Arc::default(),
            own_transactions: 0,
            first_generation: None,
            ears: None,
            missed: Doubt::None,
        })
    }

    /// Transactions sent so far.
    pub fn batches_sent(&self) -> u64 {
        self.socket.batches_sent()
    }

    /// The kernel's count of nftables transactions in this namespace, ours and others'.
    fn generation(&mut self) -> Result<u32, NftError> {
        const GENERATION_ID: u16 = 1;
        let failed = |source| NftError::Netlink { what: "read the generation", source };
        let mut request = self.socket.messages();
        request.message(Kind::GetGeneration, message::ACK, 0, |_| {});
        let mut id = None;
        self.socket
            .dump(&request, |answer| {
                id = answer.attributes().get(GENERATION_ID).and_then(|id| Some(u32::from_be_bytes(*id.first_chunk()?)));
            })
            .map_err(failed)?;
        id.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
    }

    /// Makes sure that the fixed part is there, and learns which chains and sets are. A table of another layout is replaced as a
    /// whole, and so is one whose rules somebody else has touched.
    pub fn prepare(&mut self, rules_touched: bool) -> Result<(), NftError> {
        for family in self.config.families.clone() {
            let stamp = layout::stamp(family, &(self.fixed_part)(family, &self.config, ""));
            let text = (self.fixed_part)(family, &self.config, &stamp);
            if rules_touched || !self.has_rules(family, &stamp, &text)? {
                self.load(family, &text)?;
            }
            let chains = self.names(family, Kind::GetChain, Kind::NewChain, CHAIN_NAME)?;
            self.chains.insert(family, chains.into_keys().collect());
            let sets = self.names(family, Kind::GetSet, Kind::NewSet, SET_NAME)?;
            self.sets.insert(family, sets.into_keys().collect());
        }
        Ok(())
    }

    /// Whether our chains are there with as many rules as they were given. A flush of the table leaves chains, but no rules.
    fn has_rules(&mut self, family: Family, stamp: &str, text: &str) -> Result<bool, NftError> {
        let chains = self.names(family, Kind::GetChain, Kind::NewChain, CHAIN_NAME)?;
        if !chains.contains_key(stamp) {
            return Ok(false);
        }
        let rules = self.names(family, Kind::GetRule, Kind::NewRule, RULE_CHAIN)?;
        let fixed = layout::rules(text);
        let expected = |chain: &str| fixed.get(chain).copied().or_else(|| layout::rules_made(chain));
        let as_expected = |chain: &String| rules.get(chain).copied().unwrap_or(0) == expected(chain).unwrap_or(0);
        Ok(fixed.keys().all(|chain| chains.contains_key(chain)) && chains.keys().all(as_expected))
    }

    /// Has nft load some text.
    fn load(&mut self, family: Family, text: &str) -> Result<(), NftError> {
        let loader = run_nft(&self.config, family, text)?;
        self.own_transactions = self.own_transactions.wrapping_add(1);
        let mut loaders = self.loaders.lock().unwrap_or_else(PoisonError::into_inner);
        loaders.push_back(loader);
        // What they did is heard long before so many others have run.
        if loaders.len() > 64 {
            loaders.pop_front();
        }
        Ok(())
    }

    /// Everything that our maps hold. Elements that we would never write are left out; they do no harm.
    pub fn read(&mut self) -> Result<Elements, NftError> {
        let mut all = Elements::default();
        for family in self.config.families.clone() {
            for set in self.names(family, Kind::GetSet, Kind::NewSet, SET_NAME)?.into_keys() {
                if set == layout::PROTOCOLS || set.starts_with("__") || sticky::is_clients_set(&set) {
                    continue;
                }
                self.read_set(family, &set, |element| elements::read_element(&set, family, element).ok(), &mut all)?;
            }
        }
        Ok(all)
    }

    fn read_set<T>(
        &mut self,
        family: Family,
        set: &str,
        read: impl Fn(message::Attributes<'_>) -> Option<T>,
        all: &mut impl Extend<T>,
    ) -> Result<(), NftError> {
        let body = |m: &mut Messages| {
            m.text(TABLE, layout::TABLE);
            m.text(SET_NAME, set);
        };
        let mut found = Vec::new();
        self.dump(family, Kind::GetElements, body, |message, attempt| {
            if attempt {
                found.clear();
            }
            let Some(list) = message.attributes().nested(ELEMENTS) else { return };
            found.extend(list.filter_map(|(_, element)| read(message::Attributes::of(element))));
        })?;
        all.extend(found);
        Ok(())
    }

    /// Names of the chains or sets of our table, or of the chains of its rules, each with how often it came; empty where the
    /// table does not exist.
    fn names(
        &mut self,
        family: Family,
        ask: Kind,
        answer: Kind,
        name: u16,
    ) -> Result<HashMap<String, usize>, NftError> {
        let mut names = HashMap::new();
        self.dump(
            family,
            ask,
            |m| m.text(TABLE, layout::TABLE),
            |message, again| {
                if again {
                    names.clear();
                }
                let attributes = message.attributes();
                if message.is(answer) && attributes.text(TABLE) == Some(layout::TABLE) {
                    attributes.text(name).into_iter().for_each(|name| *names.entry(name.to_owned()).or_insert(0) += 1);
                }
            },
        )?;
        Ok(names)
    }

    /// Dumps until nobody interferes; the flag given to `each` is set on the first answer of each attempt.
    fn dump(
        &mut self,
        family: Family,
        kind: Kind,
        body: impl Fn(&mut Messages),
        mut each: impl FnMut(Received<'_>, bool),
    ) -> Result<(), NftError> {
        let failed = |source| NftError::Netlink { what: "read the tables", source };
        for _ in 0..DUMP_ATTEMPTS {
            let mut request = self.socket.messages();
            request.message(kind, DUMP, family_number(family), &body);
            let mut first = true;
            match self.socket.dump(&request, |message| each(message, std::mem::take(&mut first))) {
                Ok(Dumped::Whole) => return Ok(()),
                Ok(Dumped::Interrupted) => {}
                // There is no such table: nothing to read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(io::Error::new(io::ErrorKind::ResourceBusy, "others keep changing the tables")))
    }

    /// Writes the operations, and the chains that they need and that are not there, in one transaction. Chains of affinity come
    /// before it: nobody goes there yet. Only very many additions to nothing are several, in an order in which each serves what is whole.
    pub fn apply(&mut self, operations: &Operations) -> Result<(), NftError> {
        let Operations { delete, add, .. } = operations;
        let Some(ears) = self.ears.clone().filter(|_| delete.len() + add.len() > HEARD) else {
            return self.write(operations);
        };
        let listen = |groups| ears.subscribe(groups).map_err(NftError::Open);
        let (before, own) = (self.generation()?, self.own_transactions);
        listen(false)?;
        let written = self.write(operations);
        listen(true)?;
        let expected = before.wrapping_add(self.own_transactions.wrapping_sub(own));
        if self.generation()? != expected {
            self.missed = Doubt::Elements;
        }
        written
    }

    fn write(&mut self, operations: &Operations) -> Result<(), NftError> {
        let Operations { delete, add, sticky, .. } = operations;
        if !delete.is_empty() || !sticky.is_empty() || add.len() <= FILL_AT_ONCE {
            return self.write_at_once(operations);
        }
        let mut order: Vec<&(Key, Value)> = add.iter().collect();
        order.sort_by_key(|(key, _)| elements::turn(key));
        for part in order.chunks(FILL_AT_ONCE) {
            let add = part.iter().map(|element| **element).collect();
            self.write_at_once(&Operations { add, ..Operations::default() })?;
        }
        Ok(())
    }

    fn write_at_once(&mut self, operations: &Operations) -> Result<(), NftError> {
        if operations.is_empty() {
            return Ok(());
        }
        self.make_sticky(operations)?;
        let [deleted, added] = [(Kind::DelElements, &operations.delete), (Kind::NewElements, &operations.add)]
            .map(|(kind, list)| parts(kind, list));
        let mut parts = deleted;
        parts.extend(added);
        for attempt in 1.. {
            let clients = self.moved_clients(&operations.sticky)?;
            match self.commit(operations, &parts, &clients)? {
                None => return Ok(()),
                // A client that ended between the reading and the deletion.
                Some(Refused::Clients(_)) if attempt < CLIENT_ATTEMPTS => {}
                Some(Refused::Part(index, _)) if parts[index].elements.len() > 1 => {
                    // One element a message, so that the kernel tells which one it is.
                    let part = parts.remove(index);
                    let alone = part.elements.iter().map(|&element| Part { elements: vec![element], ..part.clone() });
                    parts.splice(index..index, alone.collect::<Vec<_>>());
                }
                Some(Refused::Part(index, source)) => {
                    return Err(NftError::Rejected { what: parts[index].to_string(), source });
                }
                Some(Refused::Clients(source)) => {
                    return Err(NftError::Rejected { what: "move clients of session affinity".to_owned(), source });
                }
                Some(Refused::Other(source)) => {
                    let what = "begin the transaction or make a chain in it".to_owned();
                    return Err(NftError::Rejected { what, source });
                }
            }
        }
        Ok(())
    }

    /// Sends one transaction; `None` if all of it took effect.
    fn commit(
        &mut self,
        operations: &Operations,
        parts: &[Part],
        [freed, bound]: &[ClientList; 2],
    ) -> Result<Option<Refused>, NftError> {
        let mut messages = self.socket.messages();
        messages.begin_batch();
        let chains = self.write_chains(&mut messages, operations);
        let first = messages.next_sequence();
        for Part { kind, family, set, elements: part } in parts {
            let flags = if *kind == Kind::NewElements { CREATE } else { 0 };
            messages.message(*kind, flags, family_number(*family), |m| {
                m.text(TABLE, layout::TABLE);
                m.text(SET_NAME, set);
                m.nested(ELEMENTS, |m| {
                    for (key, value) in part {
                        elements::write_element(m, key, (*kind == Kind::NewElements).then_some(value));
                    }
                });
            });
        }
        let after = messages.next_sequence();
        for (kind, flags, clients) in [(Kind::DelElements, 0, freed), (Kind::NewElements, CREATE, bound)] {
            for ((family, set), client) in clients {
                messages.message(kind, flags, family_number(*family), |m| {
                    m.text(TABLE, layout::TABLE);
                    m.text(SET_NAME, set);
                    m.nested(ELEMENTS, |m| sticky::write_client(m, client, kind == Kind::NewElements));
                });
            }
        }
        let end = messages.next_sequence();
        if end == first && chains.is_empty() {
            return Ok(None);
        }
        messages.end_batch();
        let failed = |source| NftError::Netlink { what: "write elements", source };
        let refusals = self.socket.commit(&messages).map_err(failed)?;
        let Some((sequence, source)) = refusals.into_iter().next() else {
            self.own_transactions = self.own_transactions.wrapping_add(1);
            for (family, chain) in chains {
                self.chains.entry(family).or_default().insert(chain);
            }
            return Ok(None);
        };
        // Sequence numbers wrap, distances do not.
        let distance = sequence.wrapping_sub(first) as usize;
        Ok(Some(if distance < parts.len() {
            Refused::Part(distance, source)
        } else if distance < end.wrapping_sub(first) as usize && distance >= after.wrapping_sub(first) as usize {
            Refused::Clients(source)
        } else {
            Refused::Other(source)
        }))
    }

    /// Has nft make what routes with session affinity need and is not there.
    fn make_sticky(&mut self, operations: &Operations) -> Result<(), NftError> {
        let mut wanted = balances(operations).filter(|(_, balance)| balance.affinity_seconds.is_some()).peekable();
        if wanted.peek().is_none() {
            return Ok(());
        }
        let mut texts: BTreeMap<Family, String> = BTreeMap::new();
        let (mut chains, mut sets) = (self.chains.clone(), self.sets.clone());
        for (at, balance) in wanted {
            let family = at.family();
            let node_port = matches!(at.place, Place::Node(_));
            let (chains, sets) = (chains.entry(family).or_default(), sets.entry(family).or_default());
            let text = sticky::text(family, balance, node_port, chains, sets);
            if !text.is_empty() {
                texts.entry(family).or_default().push_str(&text);
            }
        }
        if texts.is_empty() {
            return Ok(());
        }
        for (family, text) in texts {
            self.load(family, &text)?;
        }
        (self.chains, self.sets) = (chains, sets);
        Ok(())
    }

    /// What becomes of the clients of slots that change hands.
    fn moved_clients(&mut self, changes: &[StickyChange]) -> Result<[ClientList; 2], NftError> {
        let mut clients = Clients::new();
        for (family, set) in sticky::sets_of(changes) {
            if self.sets.get(&family).is_some_and(|sets| sets.contains(&set)) {
                let mut held = BTreeMap::new();
                self.read_set(family, &set, sticky::read_client, &mut held)?;
                clients.insert((family, set), held);
            }
        }
        Ok(sticky::moves(clients, changes))
    }

    /// Appends the missing chains and returns their names.
    fn write_chains(&self, messages: &mut Messages, operations: &Operations) -> BTreeSet<(Family, String)> {
        let mut new = BTreeSet::new();
        let made = |balance: &Balance| balance.affinity_seconds.is_none() && !layout::has_own_set(*balance);
        // The chains behind sets of their own are part of the fixed text, and beside IPVS there are none.
        for (at, balance) in balances(operations).filter(|(_, balance)| made(balance)) {
            let node_port = matches!(at.place, Place::Node(_));
            let plain = Balance { masquerade: false, ..balance };
            for needed in [plain, balance] {
                let (family, chain) = (at.family(), layout::balance_chain(needed, node_port));
                let there = self.chains.get(&family).is_some_and(|chains| chains.contains(&chain));
                if !there && new.insert((family, chain)) {
                    chains::write_balance_chain(messages, family, node_port, needed);
                }
            }
        }
        new
    }

    /// Removes our tables; none there is success.
    pub fn remove(&mut self) -> Result<(), NftError> {
        for family in [Family::Ipv4, Family::Ipv6] {
            if self.names(family, Kind::GetChain, Kind::NewChain, CHAIN_NAME)?.is_empty() {
                continue;
            }
            let mut messages = self.socket.messages();
            messages.begin_batch();
            messages.message(Kind::DelTable, 0, family_number(family), |m| m.text(TABLE, layout::TABLE));
            messages.end_batch();
            let failed = |source| NftError::Netlink { what: "remove the tables", source };
            match self.socket.commit(&messages).map_err(failed)?.into_iter().next() {
                Some((_, error)) if error.kind() == io::ErrorKind::NotFound => {}
                Some((_, source)) => {
                    return Err(NftError::Rejected { what: format!("remove table {family:?}"), source });
                }
                None => {}
            }
        }
        self.chains.clear();
        self.sets.clear();
        Ok(())
    }
}

/// The table and the set or map that holds an element.
pub(super) fn set_of(key: &Key, value: &Value) -> (&'static str, String) {
    let table = match elements::family_of(key) {
        Family::Ipv4 => "ip stoker",
        Family::Ipv6 => "ip6 stoker",
    };
    (table, elements::set_of(key, value).into_owned())
}

/// The balances that new elements lead to.
fn balances(operations: &Operations) -> impl Iterator<Item = (Frontend, Balance)> + '_ {
    operations.add.iter().filter_map(|(key, value)| match (key.frontend(), *value) {
        (Some(at), Value::Verdict(Verdict::Balance(balance))) => Some((at, balance)),
        _ => None,
    })
}

/// The element that stands beside IPVS for one of the nftables data path; `None` where IPVS needs none.
pub(super) fn beside_ipvs(key: Key, value: Value) -> Option<(Key, Value)> {
    beside_ipvs::element(key, value)
}

/// Reads a message as elements of each of our sets and maps.
#[cfg(any(test, fuzzing))]
pub(super) fn read_anything(message: Received<'_>) {
    const SETS: &[&str] = &[
        "services",
        "nodeports-local",
        "endpoints",
        "nodeport-endpoints",
        "hairpins",
        "allowed-sources",
        "cluster-ips",
        "service-ranges",
        "services-lb-2",
        "nodeport-slot-1",
        "local-slot-4294967295",
        "clients-5s-1",
        "",
    ];
    let named = message.attributes().text(SET_NAME);
    let lists = [message.attributes().nested(ELEMENTS), Some(message.attributes())];
    for element in lists.into_iter().flatten().flatten().map(|(_, element)| message::Attributes::of(element)) {
        for set in SETS.iter().copied().chain(named) {
            for family in [Family::Ipv4, Family::Ipv6] {
                let _ = elements::read_element(set, family, element);
            }
        }
        let _ = sticky::read_client(element);
    }
}

/// Where IPVS balances: our rules stand beside it.
impl Kernel {
    /// Whether the tables that are there were written for mode ipvs.
    pub fn stands_beside_ipvs(&mut self) -> Result<bool, NftError> {
        for family in self.config.families.clone() {
            let chains = self.names(family, Kind::GetChain, Kind::NewChain, CHAIN_NAME)?;
            if !chains.is_empty() {
                return Ok(chains.contains_key(beside_ipvs::MARK_LEAVING));
            }
        }
        Ok(false)
    }

    /// As [`DataPath::apply`].
    pub(in crate::service) fn apply_beside_ipvs(&mut self, operations: &Operations) -> Result<(), NftError> {
        let beside =
            |list: &[(Key, Value)]| list.iter().filter_map(|&(key, value)| beside_ipvs::element(key, value)).collect();
        let mut beside =
            Operations { delete: beside(&operations.delete), add: beside(&operations.add), ..Operations::default() };
        beside.drop_unchanged();
        self.apply(&beside)
    }

    /// As [`DataPath::reconcile`].
    pub(in crate::service) fn reconcile_beside_ipvs(
        &mut self,
        table: &Table,
        doubt: Doubt,
    ) -> Result<Operations, NftError> {
        self.begin_reconciling(doubt)?;
        let mut there = self.read()?;
        let mut operations = Operations::default();
        table.elements(|key, value| {
            let Some((key, value)) = beside_ipvs::element(key, value) else { return };
            match there.remove(&key) {
                Some(old) if old == value => {}
                old => {
                    operations.delete.extend(old.map(|old| (key, old)));
                    operations.add.push((key, value));
                }
            }
        });
        operations.delete.extend(there);
        self.apply(&operations)?;
        Ok(operations)
    }

    /// What comes before the elements are read.
    fn begin_reconciling(&mut self, doubt: Doubt) -> Result<(), NftError> {
        self.first_generation = Some(self.generation()?);
        self.own_transactions = 0;
        self.prepare(doubt == Doubt::Rules)?;
        // After the rules that keep strangers off loopback.
        if self.config.localhost_node_ports {
            crate::service::sysctls::let_loopback_leave();
        }
        Ok(())
    }
}

impl DataPath for Kernel {
    fn apply(&mut self, _table: &Table, operations: &Operations) -> Result<(), ServiceError> {
        Ok(Kernel::apply(self, operations)?)
    }

    fn reconcile(&mut self, table: &mut Table, doubt: Doubt) -> Result<Operations, ServiceError> {
        self.begin_reconciling(doubt)?;
        let operations = table.reconcile(self.read()?);
        Kernel::apply(self, &operations)?;
        Ok(operations)
    }

    /// Only after the first write, whose echo would be large: the kernel's count of transactions tells whether somebody else
    /// came in between.
    fn listen(&mut self) -> Result<Option<Listening>, ServiceError> {
        let own_port = self.socket.port().map_err(NftError::Open)?;
        let ears = Arc::new(Ears::open().map_err(NftError::Open)?);
        self.ears = Some(Arc::clone(&ears));
        let expected = self.first_generation.map(|first| first.wrapping_add(self.own_transactions));
        let missed = if expected == Some(self.generation()?) { Doubt::None } else { Doubt::Elements };
        Ok(Some((Box::new(TableListener { ears, own_port, loaders: Arc::clone(&self.loaders) }), missed)))
    }

    fn missed(&mut self) -> Doubt {
        std::mem::replace(&mut self.missed, Doubt::None)
    }

    fn transactions(&self) -> u64 {
        self.batches_sent()
    }

    fn remove(&mut self) -> Result<(), ServiceError> {
        Ok(Kernel::remove(self)?)
    }
}
