//! Lists what the runtime has of pods: of one alone where one asks, and of all at once where several ask together, as they do each minute
//! and after a restart. Who asks gets a list that was begun after that.

use stoker_model::names;
use stoker_model::pod::PodUid;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::runtime::{Runtime, RuntimeError, cri};

/// Who asks beyond that waits until others have been answered.
const ASKING: usize = 256;

/// Sandboxes and containers of one pod.
pub(super) type Listed = (Vec<cri::PodSandbox>, Vec<cri::Container>);

struct Ask {
    uid: PodUid,
    answer: oneshot::Sender<Result<Listed, RuntimeError>>,
}

/// Asks the task that lists.
pub(super) struct Lister(mpsc::Sender<Ask>);

impl Lister {
    /// Starts the task; it ends with the token.
    pub(super) fn spawn(runtime: Runtime, stop: CancellationToken) -> Self {
        let (asks, asked) = mpsc::channel(ASKING);
        tokio::spawn(stop.run_until_cancelled_owned(answer(runtime, asked)));
        Self(asks)
    }

    /// What the runtime has of a pod.
    pub(super) async fn list(&self, uid: &PodUid) -> Result<Listed, RuntimeError> {
        let (answer, answered) = oneshot::channel();
        let ends = || RuntimeError::Unavailable("the agent ends".to_owned());
        self.0.send(Ask { uid: uid.clone(), answer }).await.map_err(|_| ends())?;
        answered.await.map_err(|_| ends())?
    }
}

async fn answer(runtime: Runtime, mut asked: mpsc::Receiver<Ask>) {
    let mut asks = Vec::new();
    while asked.recv_many(&mut asks, ASKING).await > 0 {
        let one = (asks.len() == 1).then(|| asks[0].uid.to_string());
        let mut listed = list(&runtime, one).await;
        for Ask { uid, answer } in asks.drain(..) {
            let of_pod = listed.as_mut().map(|all| take(all, uid.as_str())).map_err(|error| error.clone());
            // Whoever asked may have gone.
            let _ = answer.send(of_pod);
        }
    }
}

/// Of this pod, or of all.
async fn list(runtime: &Runtime, uid: Option<String>) -> Result<Listed, RuntimeError> {
    let labels = uid.map(|uid| [(names::POD_UID.to_owned(), uid)]);
    let sandboxes =
        labels.clone().map(|labels| cri::PodSandboxFilter { label_selector: labels.into(), ..Default::default() });
    let containers = labels.map(|labels| cri::ContainerFilter { label_selector: labels.into(), ..Default::default() });
    tokio::try_join!(runtime.list_pod_sandbox(sandboxes), runtime.list_containers(containers))
}

/// Takes out what belongs to a pod. A worker asks once at a time, so nobody else wants it.
fn take((sandboxes, containers): &mut Listed, uid: &str) -> Listed {
    let sandboxes = sandboxes.extract_if(.., |s| s.labels.get(names::POD_UID).is_some_and(|of| of == uid)).collect();
    let containers = containers.extract_if(.., |c| c.labels.get(names::POD_UID).is_some_and(|of| of == uid)).collect();
    (sandboxes, containers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_gets_its_own() {
        // A1.7
        let labels = |uid: &str| [(names::POD_UID.to_owned(), uid.to_owned())].into();
        let sandbox = |id: &str, uid| cri::PodSandbox { id: id.into(), labels: labels(uid), ..Default::default() };
        let container = |id: &str, uid| cri::Container { id: id.into(), labels: labels(uid), ..Default::default() };
        let foreign = cri::PodSandbox { id: "s3".into(), ..Default::default() };
        let mut all = (
            vec![sandbox("s1", "a"), sandbox("s2", "b"), foreign],
            vec![container("c1", "b"), container("c2", "a"), container("c3", "b")],
        );
        let mut ids = |uid: &str| {
            let (sandboxes, containers) = take(&mut all, uid);
            let ids = sandboxes.into_iter().map(|s| s.id).chain(containers.into_iter().map(|c| c.id));
            ids.collect::<Vec<_>>()
        };
        assert_eq!(
            (ids("b"), ids("a"), ids("c")),
            (vec!["s2".into(), "c1".into(), "c3".into()], vec!["s1".into(), "c2".into()], vec![])
        );
    }
}
