//! Keeps the client certificate: the first one by bootstrap, each next one in time; without rotation, what others put into its files.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use stoker_model::metrics;

use super::identity::{Identity, IdentitySource, Shown};
use super::request::{Asker, Issued, RequestError};
use super::rules::{Names, Purpose};
use super::store::CertificateStore;
use crate::clock::Clock;
use crate::upstream::backoff::{Backoff, random_fraction};
use crate::upstream::client::ApiServer;

/// For an answer, where the certificate is rotated (A17.1).
const ROTATING_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// And where it is not: the request stays, and so does its name.
const RESUMABLE_PATIENCE: Duration = Duration::from_secs(3600);
/// Between two tries.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Clocks jump and machines sleep: nobody waits longer without looking at the wall clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// How often files that others write are read.
const READ_AGAIN: Duration = Duration::from_secs(60);
/// Without a valid certificate for so long, while the API server answers, the agent ends (A17.2).
const HOPELESS: Duration = Duration::from_secs(5 * 60);
const HOPE_CHECK: Duration = Duration::from_secs(10);

/// The task that owns `kubelet-client-current.pem`.
#[derive(Debug)]
pub struct ClientKeeper {
    /// The node's name.
    pub node: String,
    /// Where certificates lie.
    pub store: CertificateStore,
    /// Where the present one is shown.
    pub source: IdentitySource,
    /// The connection that shows it.
    pub api: ApiServer,
    /// A connection by other credentials, for the time without a valid certificate.
    pub bootstrap: Option<ApiServer>,
    /// Whether a next one is asked for in time (`rotateCertificates`).
    pub rotate: bool,
    /// Whether the present one is not in the store and so to be replaced at once.
    pub borrowed: bool,
}

impl ClientKeeper {
    /// Asks whenever it is time; ends never.
    pub async fn run(self) {
        let asker = Asker { purpose: Purpose::Client, node: self.node.clone(), store: self.store.clone() };
        let mut due = match self.source.present() {
            Some(present) if !self.borrowed && self.rotate => present.life.rotate_at(random_fraction()),
            Some(present) if !self.borrowed => present.life.to,
            _ => Timestamp::MIN,
        };
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            sleep_until(due).await;
            match self.replace(&asker).await {
                Ok(life_ends_by_rotation) => {
                    backoff.reset();
                    if !self.rotate {
                        return std::future::pending().await;
                    }
                    due = life_ends_by_rotation;
                }
                Err(reason) => {
                    let pause = backoff.wait();
                    metrics::CLIENT_CERTIFICATE_ERRORS.inc(&[]);
                    tracing::warn!(reason, again_in = ?pause, "no new client certificate");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// One new certificate; returns when the next is due.
    async fn replace(&self, asker: &Asker) -> Result<Timestamp, String> {
        let present = self.source.present().filter(|present| present.holds(Clock.now().wall));
        let api = if present.is_some() { &self.api } else { self.bootstrap.as_ref().unwrap_or(&self.api) };
        let issued = if self.rotate {
            asker.ask(api, &Names::default(), ROTATING_PATIENCE).await
        } else {
            asker.ask_resumably(api, RESUMABLE_PATIENCE).await
        };
        let (shown, path) = accept(issued, &self.store)?;
        let life = shown.life;
        tracing::info!(path = %path.display(), until = %life.to, "a new client certificate");
        self.source.set(shown);
        Ok(life.rotate_at(random_fraction()))
    }
}

/// Checks what was signed, and keeps it.
pub(super) fn accept(
    issued: Result<Issued, RequestError>,
    store: &CertificateStore,
) -> Result<(Shown, PathBuf), String> {
    let issued = issued.map_err(|error| error.to_string())?;
    let now = Clock.now().wall;
    let shown = Shown::from_pem(&issued.chain, &issued.key)
        .map_err(|reason| format!("the signed certificate cannot be used: {reason}"))?;
    if !shown.holds(now) {
        let (from, to) = (shown.life.from, shown.life.to);
        return Err(format!(
            "the signed certificate is good from {from} to {to}, and here it is {now}: check the clocks"
        ));
    }
    let path = store.save(&issued.chain, &issued.key, now).map_err(|error| error.to_string())?;
    Ok((shown, path))
}

/// Returns when the wall clock says so.
pub(super) async fn sleep_until(due: Timestamp) {
    loop {
        let left = due.duration_since(Clock.now().wall);
        let Ok(left) = Duration::try_from(left) else { return };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

/// Shows what is in these files (which may be one), also after others have changed them (A17.2); ends never.
pub async fn follow_files(certificate: PathBuf, key: PathBuf, source: IdentitySource) {
    let mut told = false;
    loop {
        tokio::time::sleep(READ_AGAIN).await;
        let read = || -> Result<Shown, String> {
            let text = |path: &PathBuf| std::fs::read_to_string(path).map_err(|error| error.to_string());
            Shown::from_pem(&text(&certificate)?, &text(&key)?)
        };
        match read() {
            Ok(shown) => {
                told = false;
                source.set(shown);
            }
            // A pair that is just being written does not fit.
            Err(reason) if told => tracing::debug!(reason, path = %certificate.display(), "certificate not read"),
            Err(reason) => {
                told = true;
                tracing::warn!(reason, path = %certificate.display(), "keeping the client certificate that was there");
            }
        }
    }
}

/// Ends when there was no valid certificate for five minutes although the API server answers: a new start tries all ways again (A17.2).
/// `anonymous` needs no certificate.
pub async fn until_hopeless(identity: Identity, anonymous: ApiServer) {
    without_hope(identity, anonymous, HOPELESS, HOPE_CHECK).await;
}

async fn without_hope(mut identity: Identity, anonymous: ApiServer, patience: Duration, every: Duration) {
    let mut last_valid = Clock.now().monotonic;
    loop {
        let now = Clock.now();
        match identity.present() {
            Some(present) if present.holds(now.wall) => {
                last_valid = now.monotonic;
                tokio::select! {
                    () = sleep_until(present.life.to) => last_valid = Clock.now().monotonic,
                    () = identity.changed() => {}
                }
            }
            _ => {
                let without = now.monotonic.saturating_sub(last_valid);
                if without >= patience && anonymous.is_healthy().await {
                    tracing::error!(?without, "no valid client certificate, although the API server answers");
                    return;
                }
                tokio::time::sleep(every).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Good from 2020 to the beginning of that year.
    fn made(until: i32) -> Shown {
        let mut params = rcgen::CertificateParams::new(vec!["a".into()]).expect("a name");
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Shown::from_pem(&certificate.pem(), &key.serialize_pem()).expect("a pair")
    }

    #[tokio::test]
    async fn it_ends_without_a_certificate_when_the_server_answers() {
        // A17.2
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let url = format!("http://{address}").parse().expect("a URL");
        let api = ApiServer::new(&kube::Config::new(url)).expect("a connection");
        let (patience, every) = (Duration::from_millis(200), Duration::from_millis(20));
        let ends = async |shown: Option<Shown>| {
            let (_source, identity) = Identity::new(shown);
            let (start, waits) = (Clock.now().monotonic, without_hope(identity, api.clone(), patience, every));
            let ended = tokio::time::timeout(Duration::from_secs(1), waits).await.is_ok();
            ended.then(|| Clock.now().monotonic.saturating_sub(start))
        };
        drop(listener);
        assert_eq!(ends(None).await, None, "nobody answers: a new start would not help");
        let listener = TcpListener::bind(address).await.expect("the port is ours");
        let serve = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 2048]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
            }
        });
        assert_eq!(ends(Some(made(4000))).await, None, "there is a valid one");
        for without in [None, Some(made(2021))] {
            assert!(ends(without).await.is_some_and(|after| after >= patience));
        }
        serve.abort();
    }
}
