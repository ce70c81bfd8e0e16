//! The socket to IPVS: finds its family, reads what is there, writes steps.

use std::collections::HashMap;
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::IpvsError;
use super::message::{Destination, ServerKey, Writer, ask_family, read_destination, read_family, read_service};
use super::plan::{Server, Step, WEIGHT};
use crate::service::netlink::message::Messages;
use crate::service::netlink::socket::Socket;

/// Each message is acknowledged, and so many acknowledgements fit the socket's buffer for sure.
pub(super) const MESSAGES_AT_ONCE: usize = 500;

/// A connection to IPVS.
#[derive(Debug)]
pub(super) struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    /// Connects; where the module is not loaded, it is.
    pub(super) fn open() -> Result<Self, IpvsError> {
        if let Some(ipvs) = Self::open_if_loaded()? {
            return Ok(ipvs);
        }
        // Failing is judged by what follows.
        let _ = Command::new("modprobe").args(["-q", "ip_vs"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
        Self::open_if_loaded()?.ok_or(IpvsError::NoKernelSupport)
    }

    /// Connects, if there is something to connect to.
    pub(super) fn open_if_loaded() -> Result<Option<Self>, IpvsError> {
        let mut socket = Socket::open_generic().map_err(IpvsError::Open)?;
        let mut request = socket.messages();
        ask_family(&mut request);
        let mut family = None;
        match socket.dump(&request, |answer| family = read_family(answer.attributes())) {
            Ok(_) => Ok(family.map(|family| Self { socket, family })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IpvsError::Netlink { what: "find its family", source }),
        }
    }

    /// All virtual servers with their backends.
    pub(super) fn read(&mut self) -> Result<HashMap<ServerKey, Server>, IpvsError> {
        let failed = |source| IpvsError::Netlink { what: "read virtual servers", source };
        let mut found = Vec::new();
        let mut request = self.socket.messages();
        Writer { messages: &mut request, family: self.family }.list_services();
        self.socket.dump(&request, |answer| found.extend(read_service(answer.attributes()))).map_err(failed)?;
        let mut servers = HashMap::with_capacity(found.len());
        for (key, settings) in found {
            let backends = self.destinations(&key)?.into_iter().map(|found| (found.backend, found.weight)).collect();
            servers.insert(key, Server { settings, backends });
        }
        Ok(servers)
    }

    /// The backends of one virtual server; none where it is gone.
    pub(super) fn destinations(&mut self, key: &ServerKey) -> Result<Vec<Destination>, IpvsError> {
        let mut found = Vec::new();
        let mut request = self.socket.messages();
        Writer { messages: &mut request, family: self.family }.list_destinations(key);
        match self.socket.dump(&request, |answer| found.extend(read_destination(answer.attributes()))) {
            Ok(_) => Ok(found),
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(source) => Err(IpvsError::Netlink { what: "read backends", source }),
        }
    }

    /// Takes the steps in their order. What is already so, because somebody else did it, is success.
    pub(super) fn write(&mut self, steps: &[Step]) -> Result<(), IpvsError> {
        for part in steps.chunks(MESSAGES_AT_ONCE) {
            let mut messages = self.socket.messages();
            let mut named = HashMap::with_capacity(part.len());
            for step in part {
                named.insert(write_step(&mut messages, self.family, step), step);
            }
            let failed = |source| IpvsError::Netlink { what: "write virtual servers", source };
            for (sequence, source) in self.socket.commit(&messages).map_err(failed)? {
                let Some(step) = named.get(&sequence) else { continue };
                let done = match step {
                    Step::Delete(_) | Step::DeleteBackend(..) => is_absent(&source),
                    _ => false,
                };
                if !done {
                    return Err(IpvsError::Refused { what: format!("{step:?}"), source });
                }
            }
        }
        Ok(())
    }

    /// Time-outs of idle connections: TCP, TCP after a FIN, UDP; zero leaves the kernel's value.
    pub(super) fn set_timeouts(&mut self, timeouts: [Duration; 3]) -> Result<(), IpvsError> {
        let [tcp, fin, udp] = timeouts.map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX));
        let mut messages = self.socket.messages();
        Writer { messages: &mut messages, family: self.family }.set_timeouts(tcp, fin, udp);
        let failed = |source| IpvsError::Netlink { what: "set time-outs", source };
        match self.socket.commit(&messages).map_err(failed)?.into_iter().next() {
            Some((_, source)) => Err(IpvsError::Refused { what: "set time-outs".to_owned(), source }),
            None => Ok(()),
        }
    }
}

/// IPVS says ESRCH of a service and ENOENT of a destination that is not there.
fn is_absent(error: &io::Error) -> bool {
    const ESRCH: i32 = 3;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH)
}

fn write_step(messages: &mut Messages, family: u16, step: &Step) -> u32 {
    let mut writer = Writer { messages, family };
    match step {
        Step::Add(key, settings) => writer.add_service(key, settings),
        Step::Set(key, settings) => writer.set_service(key, settings),
        Step::Delete(key) => writer.delete_service(key),
        Step::AddBackend(key, backend) => writer.add_destination(key, backend, WEIGHT),
        Step::UseBackend(key, backend) => writer.set_destination(key, backend, WEIGHT),
        Step::Drain(key, backend) => writer.set_destination(key, backend, 0),
        Step::DeleteBackend(key, backend) => writer.delete_destination(key, backend),
    }
}
