//! Keeps the serving certificate that the cluster signs (`serverTLSBootstrap`): its names are those of the Node (A17.3).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use stoker_model::handle::PemPair;
use stoker_model::metrics;
use tokio::sync::watch;

use super::client::{accept, sleep_until};
use super::identity::Shown;
use super::request::Asker;
use super::rules::{Names, Purpose};
use super::store::CertificateStore;
use crate::clock::Clock;
use crate::upstream::backoff::{Backoff, random_fraction};
use crate::upstream::client::ApiServer;

/// For an answer: mostly a person approves (A17.3).
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// The task that owns `kubelet-server-current.pem`.
#[derive(Debug)]
pub struct ServingKeeper {
    /// The node's name.
    pub node: String,
    /// Where certificates lie.
    pub store: CertificateStore,
    /// The connection to ask by.
    pub api: ApiServer,
    /// The Node, whose addresses the certificate must name.
    pub object: watch::Receiver<Option<Node>>,
    /// Where the present one is published.
    pub publish: watch::Sender<Option<Arc<PemPair>>>,
}

/// What is served now.
struct Present {
    names: Names,
    from: Timestamp,
    due: Timestamp,
}

impl ServingKeeper {
    /// Asks whenever it is time, or the node's addresses are not those of the certificate; ends never.
    pub async fn run(mut self) {
        let asker = Asker { purpose: Purpose::Serving, node: self.node.clone(), store: self.store.clone() };
        let mut present = self.stored();
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let wanted = self.wanted();
            let due = match &present {
                _ if wanted.is_empty() => Timestamp::MAX,
                Some(present) if present.names.cover(&wanted) => present.due,
                _ => Timestamp::MIN,
            };
            tokio::select! {
                () = sleep_until(due) => {}
                changed = self.object.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    continue;
                }
            }
            let issued = asker.ask(&self.api, &wanted, PATIENCE).await;
            let key = issued.as_ref().ok().cloned();
            match (accept(issued, &self.store), key) {
                (Ok((shown, path)), Some(pair)) => {
                    backoff.reset();
                    tracing::info!(path = %path.display(), until = %shown.life.to, "a new serving certificate");
                    if let Some(before) = &present {
                        let age = Clock.now().wall.duration_since(before.from);
                        metrics::SERVER_CERTIFICATE_ROTATION.observe(&[], Duration::try_from(age).unwrap_or_default());
                    }
                    present = Some(self.show(pair.chain, pair.key, &shown));
                }
                (Err(reason), _) => {
                    let pause = backoff.wait();
                    metrics::SERVER_CERTIFICATE_ERRORS.inc(&[]);
                    tracing::warn!(reason, again_in = ?pause, "no new serving certificate");
                    tokio::time::sleep(pause).await;
                }
                (Ok(_), None) => {}
            }
        }
    }

    /// What an earlier start was given, if it is still good.
    fn stored(&self) -> Option<Present> {
        let text = self.store.read().ok()?;
        let shown = Shown::from_pem(&text, &text).ok().filter(|shown| shown.holds(Clock.now().wall))?;
        Some(self.show(text.clone(), text, &shown))
    }

    fn show(&self, chain: String, key: String, shown: &Shown) -> Present {
        let names = CertificateDer::from_pem_slice(chain.as_bytes())
            .map(|certificate| Names::of_certificate(&certificate))
            .unwrap_or_default();
        self.publish.send_replace(Some(Arc::new(PemPair { chain, key })));
        metrics::SERVER_CERTIFICATE_TTL.set(shown.life.to.as_second());
        Present { names, from: shown.life.from, due: shown.life.rotate_at(random_fraction()) }
    }

    fn wanted(&mut self) -> Names {
        let node = self.object.borrow_and_update();
        let addresses =
            node.as_ref().and_then(|node| node.status.as_ref()).and_then(|status| status.addresses.as_ref());
        Names::of_node(addresses.into_iter().flatten().map(|is| (is.type_.as_str(), is.address.as_str())))
    }
}
