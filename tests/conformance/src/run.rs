//! Runs the e2e binary, batch by batch, with several processes at once.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use crate::Error;
use crate::junit::{self, Outcome};
use crate::plan::{Plan, focus};

/// How the e2e binary is called.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) e2e: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) kubectl: Option<PathBuf>,
    /// The file for `KUBE_TEST_REPO_LIST`.
    pub(crate) repositories: Option<PathBuf>,
    /// Where logs and reports go.
    pub(crate) reports: PathBuf,
    pub(crate) minutes: u32,
}

/// Outcomes by the tests' names; a test that no report names is absent.
pub(crate) fn all(plan: &Plan, binary: &Binary, jobs: usize) -> Result<BTreeMap<String, Outcome>, Error> {
    let mut outcomes = in_parallel(binary, "batch", &plan.parallel, jobs)?;
    outcomes.extend(in_parallel(binary, "serial", &plan.serial, 1)?);
    Ok(outcomes)
}

fn in_parallel(
    binary: &Binary,
    kind: &str,
    batches: &[Vec<String>],
    jobs: usize,
) -> Result<BTreeMap<String, Outcome>, Error> {
    let queue: Mutex<VecDeque<(usize, &Vec<String>)>> = Mutex::new(batches.iter().enumerate().collect());
    let next = || queue.lock().expect("no holder of the lock panics").pop_front();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, batches.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    let mut outcomes = BTreeMap::new();
                    while let Some((index, batch)) = next() {
                        outcomes.extend(one(binary, &format!("{kind}-{index:02}"), batch)?);
                        eprintln!("{kind} {} of {}: done", index + 1, batches.len());
                    }
                    Ok(outcomes)
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for worker in workers {
            all.extend(worker.join().expect("a worker that panics has said why")?);
        }
        Ok(all)
    })
}

/// Runs one batch. The exit code tells nothing that the report does not tell better.
fn one(binary: &Binary, name: &str, batch: &[String]) -> Result<BTreeMap<String, Outcome>, Error> {
    let log_path = binary.reports.join(format!("{name}.log"));
    let log = File::create(&log_path).map_err(Error::file(&log_path))?;
    let report = binary.reports.join(format!("{name}.xml"));
    let mut command = Command::new(&binary.e2e);
    command
        .arg(format!("--kubeconfig={}", binary.kubeconfig.display()))
        .args(["--provider=skeleton", "--ginkgo.no-color", "--ginkgo.silence-skips", "--disable-log-dump"])
        .args(["--dump-logs-on-failure=false", "--allowed-not-ready-nodes=-1", "--minStartupPods=0"])
        .arg(format!("--ginkgo.timeout={}m", binary.minutes))
        .arg(format!("--ginkgo.junit-report={}", report.display()))
        .arg(format!("--ginkgo.focus={}", focus(batch)));
    if let Some(kubectl) = &binary.kubectl {
        command.arg(format!("--kubectl-path={}", kubectl.display()));
    }
    if let Some(repositories) = &binary.repositories {
        command.env("KUBE_TEST_REPO_LIST", repositories);
    }
    command.stdin(Stdio::null()).stderr(log.try_clone().map_err(Error::file(&log_path))?).stdout(log);
    command.status().map_err(Error::file(&binary.e2e))?;
    // No report: the tests of this batch are absent from the outcomes, and the table says so.
    let mut outcomes = junit::read(&std::fs::read_to_string(&report).unwrap_or_default());
    // The report names every test that the binary has, the others as skipped.
    outcomes.retain(|name, _| batch.contains(name));
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in for the e2e binary, for the calling side only: it reports the tests of its focus as passed, and breaks off at one named "crash".
    const STAND_IN: &str = r#"#!/bin/sh
for argument; do
  case $argument in
    --ginkgo.junit-report=*) report=${argument#*=} ;;
    --ginkgo.focus=*) focus=${argument#*=} ;;
  esac
done
case $focus in *crash*) exit 2 ;; esac
names=$(printf %s "$focus" | sed 's/^^Kubernetes e2e suite (//; s/)\$$//')
{ echo '<testsuites><testsuite>'; echo "$names" | tr '|' '\n' | sed 's/.*/<testcase name="[It] &"\/>/'; echo '<testcase name="[It] other"><skipped/></testcase></testsuite></testsuites>'; } >"$report"
"#;

    #[test]
    fn batches_are_run_and_reports_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let e2e = folder.path().join("e2e.test");
        std::fs::write(&e2e, STAND_IN).expect("written");
        std::fs::set_permissions(&e2e, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let binary = Binary {
            e2e,
            kubeconfig: "none".into(),
            kubectl: None,
            repositories: None,
            reports: folder.path().to_owned(),
            minutes: 1,
        };
        let batches = |names: &[&[&str]]| {
            names.iter().map(|batch| batch.iter().map(|name| (*name).to_owned()).collect()).collect()
        };
        let plan = Plan {
            parallel: batches(&[&["a", "b"], &["c", "crash"], &["d"]]),
            serial: batches(&[&["e"]]),
            skipped: Vec::new(),
        };
        let outcomes = all(&plan, &binary, 2).expect("it runs");
        assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["a", "b", "d", "e"], "the batch that crashed tells nothing");
        let missing = Binary { e2e: "/nowhere/e2e.test".into(), ..binary };
        let error = all(&plan, &missing, 2).expect_err("there is no such binary");
        assert!(error.to_string().contains("/nowhere/e2e.test"), "{error}");
    }
}
