//! `hello lookup NAME`: asks the name servers of /etc/resolv.conf, with its search list, as a program in a pod would.
//!
//! The image has no libc, and a static one cannot resolve names.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 3;
const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;

/// What stands in resolv.conf.
#[derive(Debug, Default, PartialEq)]
struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Resolver {
    fn read(text: &str) -> Self {
        let mut resolver = Self { ndots: 1, ..Self::default() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver.servers.extend(words.next().and_then(|address| address.parse::<IpAddr>().ok()))
                }
                Some("search") => resolver.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots = words.find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
                    resolver.ndots = ndots.unwrap_or(resolver.ndots);
                }
                _ => {}
            }
        }
        resolver
    }

    /// The complete names that a name may mean, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(complete) = name.strip_suffix('.') {
            return vec![complete.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{}", domain.trim_end_matches('.')));
        let alone = std::iter::once(name.to_owned());
        if name.matches('.').count() >= self.ndots {
            alone.chain(searched).collect()
        } else {
            searched.chain(alone).collect()
        }
    }
}

/// Prints the IPv4 addresses of a name; an error when there is none.
pub(crate) fn lookup(name: &str) -> io::Result<()> {
    let resolver = Resolver::read(&std::fs::read_to_string("/etc/resolv.conf")?);
    for candidate in resolver.candidates(name) {
        let addresses = ask(&resolver.servers, &candidate)?;
        if !addresses.is_empty() {
            addresses.iter().for_each(|address| println!("{candidate} {address}"));
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address, asked {:?}", resolver.servers)))
}

fn ask(servers: &[IpAddr], name: &str) -> io::Result<Vec<Ipv4Addr>> {
    let mut query = vec![0x5a, 0x5a, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).map_err(|_| io::ErrorKind::InvalidInput)?);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "resolv.conf names no server");
    for server in servers.iter().cycle().take(servers.len() * ATTEMPTS) {
        match exchange(*server, &query) {
            Ok(answer) => return addresses(&answer, query.len()).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(server: IpAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((server, 53))?;
    socket.send(query)?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// The A records of an answer whose question section ends at `at`.
fn addresses(answer: &[u8], mut at: usize) -> Option<Vec<Ipv4Addr>> {
    let number = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let mut found = Vec::new();
    for _ in 0..number(6)? {
        while (1..64).contains(answer.get(at)?) {
            at += 1 + usize::from(answer[at]);
        }
        at += if answer[at] == 0 { 1 } else { 2 };
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        match kind {
            TYPE_A => found.push(<[u8; 4]>::try_from(data).ok()?.into()),
            // Its target's addresses follow.
            TYPE_CNAME => {}
            _ => return None,
        }
        at += 10 + length;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_list_counts_below_so_many_dots() {
        let text = "nameserver 10.96.0.10\nsearch a.svc.cluster.local svc.cluster.local\noptions ndots:2\n";
        let resolver = Resolver::read(text);
        assert_eq!(resolver.servers, [IpAddr::from([10, 96, 0, 10])]);
        assert_eq!(resolver.candidates("web")[0], "web.a.svc.cluster.local");
        assert_eq!(resolver.candidates("web.b.svc")[0], "web.b.svc");
        assert_eq!(resolver.candidates("web."), ["web"]);
    }

    #[test]
    fn addresses_are_read_behind_aliases() {
        let mut answer = vec![0, 0, 0x80, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
        let at = answer.len();
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 5, 0, 3, 1, b'y', 0]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 192, 0, 2, 1]);
        assert_eq!(addresses(&answer, at), Some(vec![Ipv4Addr::new(192, 0, 2, 1)]));
        assert_eq!(addresses(&answer[..at + 9], at), None);
    }
}
