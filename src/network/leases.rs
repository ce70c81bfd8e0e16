//! Leases of addresses, in a folder that survives a crash at any moment.
//!
//! One symbolic link per leased address: its name is the address, its target the owner (`container/interface`). Making a
//! link is one atomic step that writes the owner too, so there is no torn lease. A lock orders those who lease. The folder
//! stands below `/run`: a machine that boots has no sandboxes, and so no leases.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::cidr::Cidr;

/// The network's own address and the node's: a gateway, as people expect it, and our end of a tunnel.
const RESERVED: u128 = 2;

/// Why an address could not be leased or given back.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseError {
    /// Reading or writing failed.
    #[error("the leases in {path}: {source}")]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All are leased.
    #[error(
        "no address is free in {range}: {leased} are leased; the node runs more pods than its podCIDR has room for"
    )]
    Full {
        /// The range.
        range: Cidr,
        /// How many leases there are.
        leased: usize,
    },
}

/// Who holds a lease: the sandbox's ID and the interface's name in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Owner {
    /// `CNI_CONTAINERID`.
    pub(super) container: String,
    /// `CNI_IFNAME`.
    pub(super) interface: String,
}

impl Owner {
    fn text(&self) -> String {
        format!("{}/{}", self.container, self.interface)
    }

    fn parse(text: &str) -> Option<Self> {
        let (container, interface) = text.split_once('/')?;
        Some(Self { container: container.to_owned(), interface: interface.to_owned() })
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct Leases {
    folder: PathBuf,
}

impl Leases {
    /// Makes the folder where it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn open(state: &Path) -> Result<Self, LeaseError> {
        let folder = state.join("leases");
        let leases = Self { folder };
        fs::create_dir_all(&leases.folder).map_err(|source| leases.failed(source))?;
        Ok(leases)
    }

    fn failed(&self, source: io::Error) -> LeaseError {
        LeaseError::Folder { path: self.folder.clone(), source }
    }

    fn lock(&self) -> Result<File, LeaseError> {
        let path = self.folder.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(|e| self.failed(e))?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)).map_err(|e| self.failed(e.into()))?;
        Ok(file)
    }

    /// Leases one address of each range, in their order. The search starts behind the address leased last, so that one
    /// just given back is not used again at once.
    ///
    /// # Errors
    /// When a range is used up; nothing is leased then.
    pub(super) fn lease(&self, ranges: &[Cidr], owner: &Owner) -> Result<Vec<IpAddr>, LeaseError> {
        let _lock = self.lock()?;
        let taken: BTreeSet<IpAddr> = self.all()?.into_iter().map(|(address, _)| address).collect();
        let mut leased = Vec::new();
        for range in ranges {
            match self.lease_one(*range, &taken, owner) {
                Ok(address) => leased.push(address),
                Err(error) => {
                    for address in leased {
                        let _ = fs::remove_file(self.folder.join(file_name(address)));
                    }
                    return Err(error);
                }
            }
        }
        Ok(leased)
    }

    fn lease_one(&self, range: Cidr, taken: &BTreeSet<IpAddr>, owner: &Owner) -> Result<IpAddr, LeaseError> {
        let pointer = self.folder.join(if range.is_ipv4() { "last-4" } else { "last-6" });
        let last = fs::read_link(&pointer).ok().and_then(|target| target.to_str()?.parse().ok());
        let last = last.and_then(|address| range.index_of(address)).unwrap_or_default();
        // The last address of an IPv4 range is its broadcast address; a range of one or two addresses has none.
        let end = range.size_less_one();
        let (first, end) = match (range.is_ipv4(), end) {
            (_, 0..=1) => (0, end),
            (true, _) => (RESERVED, end - 1),
            (false, _) => (RESERVED, end),
        };
        let from = if (first..end).contains(&last) { last + 1 } else { first };
        let free = (from..=end)
            .chain(first..from)
            .filter_map(|index| range.nth(index))
            .find(|address| !taken.contains(address))
            .ok_or(LeaseError::Full { range, leased: taken.len() })?;
        symlink(owner.text(), self.folder.join(file_name(free))).map_err(|source| self.failed(source))?;
        // Only a hint: without it an address is used again sooner.
        let new = self.folder.join("last.new");
        let _ = fs::remove_file(&new);
        let _ = symlink(free.to_string(), &new).and_then(|()| fs::rename(&new, &pointer));
        Ok(free)
    }

    /// The addresses that the owner holds.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn of(&self, owner: &Owner) -> Result<Vec<IpAddr>, LeaseError> {
        Ok(self.all()?.into_iter().filter(|(_, of)| of == owner).map(|(address, _)| address).collect())
    }

    /// Gives back what the owner holds; nothing is fine.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(super) fn release(&self, owner: &Owner) -> Result<(), LeaseError> {
        let _lock = self.lock()?;
        for address in self.of(owner)? {
            self.remove(address)?;
        }
        Ok(())
    }

    /// All leases.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn all(&self) -> Result<Vec<(IpAddr, Owner)>, LeaseError> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|source| self.failed(source))? {
            let entry = entry.map_err(|source| self.failed(source))?;
            let Some(address) = entry.file_name().to_str().and_then(address_of) else { continue };
            // Given back meanwhile, or not ours.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            all.extend(target.to_str().and_then(Owner::parse).map(|owner| (address, owner)));
        }
        Ok(all)
    }

    /// Owners of leases that are at least so old. A younger one may belong to a sandbox that is just being made, which
    /// the runtime does not list yet.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn owners_older_than(&self, age: Duration, now: jiff::Timestamp) -> Result<BTreeSet<Owner>, LeaseError> {
        let mut owners = BTreeSet::new();
        for (address, owner) in self.all()? {
            let made = fs::symlink_metadata(self.folder.join(file_name(address))).map_or(0, |meta| meta.mtime());
            let old = now.as_second().saturating_sub(made);
            if u64::try_from(old).is_ok_and(|old| old >= age.as_secs()) {
                owners.insert(owner);
            }
        }
        Ok(owners)
    }

    fn remove(&self, address: IpAddr) -> Result<(), LeaseError> {
        match fs::remove_file(self.folder.join(file_name(address))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }
}

fn file_name(address: IpAddr) -> String {
    address.to_string()
}

fn address_of(name: &str) -> Option<IpAddr> {
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container: &str) -> Owner {
        Owner { container: container.to_owned(), interface: "eth0".to_owned() }
    }

    fn ranges(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().expect("a range")).collect()
    }

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_given_back_is_not_used_again_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let leases = Leases::open(dir.path()).expect("made");
        let ranges = ranges(&["10.244.0.0/29", "fd00::/64"]);
        let next = |name: &str| texts(&leases.lease(&ranges, &owner(name)).expect("free"));
        assert_eq!(next("a"), ["10.244.0.2", "fd00::2"]);
        assert_eq!(next("b"), ["10.244.0.3", "fd00::3"]);
        leases.release(&owner("b")).expect("released");
        leases.release(&owner("b")).expect("twice is fine");
        assert_eq!(next("c"), ["10.244.0.4", "fd00::4"]);
        assert_eq!(next("d"), ["10.244.0.5", "fd00::5"]);
        assert_eq!(next("e"), ["10.244.0.6", "fd00::6"], ".7 is the broadcast address");
        assert_eq!(next("f"), ["10.244.0.3", "fd00::7"], "round again");
        let error = leases.lease(&ranges, &owner("g")).expect_err("five of eight can be leased").to_string();
        assert!(error.contains("10.244.0.0/29"), "{error}");
        assert!(leases.of(&owner("g")).expect("read").is_empty());
        assert_eq!(texts(&leases.of(&owner("a")).expect("read")).len(), 2);
    }

    #[test]
    fn leases_outlive_whoever_made_them_and_old_ones_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let ranges = ranges(&["10.244.0.0/24"]);
        Leases::open(dir.path()).and_then(|leases| leases.lease(&ranges, &owner("a"))).expect("leased");
        // Half of a step that a crash cut short, and something of nobody's.
        symlink("10.244.0.9", dir.path().join("leases/last.new")).expect("made");
        fs::write(dir.path().join("leases/readme"), "x").expect("written");
        let leases = Leases::open(dir.path()).expect("there");
        assert_eq!(leases.all().expect("read").len(), 1);
        assert_eq!(texts(&leases.lease(&ranges, &owner("b")).expect("leased")), ["10.244.0.3"]);
        let now = crate::clock::Clock.now().wall;
        let minute = Duration::from_secs(60);
        assert!(leases.owners_older_than(minute, now).expect("read").is_empty());
        let later = now.checked_add(2 * minute).expect("a time");
        assert_eq!(leases.owners_older_than(minute, later).expect("read").len(), 2);
    }

    #[test]
    fn many_lease_at_once_and_none_gets_anothers() {
        let dir = tempfile::tempdir().expect("a folder");
        let leases = Leases::open(dir.path()).expect("made");
        let ranges = ranges(&["10.244.0.0/24"]);
        let all: Vec<IpAddr> = std::thread::scope(|scope| {
            let lease = |thread: usize| {
                let (leases, ranges) = (&leases, &ranges);
                scope.spawn(move || {
                    let names = (0..20).map(|number| owner(&format!("{thread}-{number}")));
                    names.flat_map(|owner| leases.lease(ranges, &owner).expect("free")).collect::<Vec<_>>()
                })
            };
            let threads: Vec<_> = (0..8).map(lease).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect()
        });
        assert_eq!(all.len(), 160);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 160);
    }
}
