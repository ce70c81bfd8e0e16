//! Runs tests of an upstream `e2e.test` binary (v1.36) against a cluster with several jobs, and writes a table of what came of each.
//!
//! The binary and the images are the user's own: this program brings neither.

mod images;
mod junit;
mod plan;
mod run;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Runs upstream conformance tests against a cluster.
#[derive(Parser, Debug)]
#[command(version, about, long_about = None)]
struct Options {
    /// The upstream e2e binary of v1.36 (`e2e.test`).
    #[arg(long)]
    e2e: PathBuf,
    /// A kubeconfig of a cluster administrator.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: PathBuf,
    /// The list of tests to choose from: area, `N` where also [NodeConformance], source file, name; tab-separated.
    #[arg(long, default_value = "tests/conformance/conformance-1.36.tsv")]
    tests: PathBuf,
    /// Runs the tests whose names match this expression, instead of those marked `N`.
    #[arg(long)]
    focus: Option<regex::Regex>,
    /// Leaves out the tests whose names match this expression; they are in the table as skipped.
    #[arg(long)]
    skip: Option<regex::Regex>,
    /// How many processes of the e2e binary run at once. Tests marked [Serial] run alone afterwards.
    #[arg(long, default_value_t = 6)]
    jobs: usize,
    /// A registry that has the test images under their usual names, in place of registry.k8s.io.
    #[arg(long, conflicts_with = "images")]
    registry: Option<String>,
    /// A folder of image archives (*.tar), imported into containerd before the tests.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Where containerd listens, for `--images`.
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    containerd: PathBuf,
    /// kubectl for the tests that call it.
    #[arg(long)]
    kubectl: Option<PathBuf>,
    /// Where logs and JUnit reports are kept; a temporary folder, removed in the end, unless given.
    #[arg(long)]
    reports: Option<PathBuf>,
    /// The table that is written: test, result, reason.
    #[arg(long, default_value = "tests/conformance/conformance-1.36.results.tsv")]
    table: PathBuf,
    /// Minutes that a process of the e2e binary may take for its batch of tests.
    #[arg(long, default_value_t = 30)]
    minutes: u32,
}

/// What stops a run before its tests could tell anything.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A file cannot be used.
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    /// The list of tests has a line that is none.
    #[error("{path}, line {line}: expected area, N or -, source file and name, separated by tabs")]
    List { path: PathBuf, line: usize },
    /// No test was chosen.
    #[error("no test of the list is chosen: look at --focus and --skip")]
    Nothing,
    /// An image archive was refused.
    #[error("{path} cannot be imported into containerd: {message}")]
    Import { path: PathBuf, message: String },
}

impl Error {
    fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

fn main() -> ExitCode {
    match conform(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Runs all; tells whether no test failed.
fn conform(options: &Options) -> Result<bool, Error> {
    let text = std::fs::read_to_string(&options.tests).map_err(Error::file(&options.tests))?;
    let tests = plan::read(&text).map_err(|line| Error::List { path: options.tests.clone(), line })?;
    let plan = plan::choose(&tests, options.focus.as_ref(), options.skip.as_ref(), options.jobs);
    if plan.chosen() == 0 {
        return Err(Error::Nothing);
    }
    if let Some(folder) = &options.images {
        images::import(folder, &options.containerd)?;
    }
    let scratch = tempfile::tempdir().map_err(Error::file(&std::env::temp_dir()))?;
    let reports = options.reports.clone().unwrap_or_else(|| scratch.path().to_owned());
    std::fs::create_dir_all(&reports).map_err(Error::file(&reports))?;
    let environment = match &options.registry {
        Some(registry) => Some(images::registries(registry, &reports)?),
        None => None,
    };
    let results = run::all(
        &plan,
        &run::Binary {
            e2e: options.e2e.clone(),
            kubeconfig: options.kubeconfig.clone(),
            kubectl: options.kubectl.clone(),
            repositories: environment,
            reports,
            minutes: options.minutes,
        },
        options.jobs,
    )?;
    let rows = table::rows(&plan, &results);
    std::fs::write(&options.table, table::text(&rows)).map_err(Error::file(&options.table))?;
    let count = |result| rows.iter().filter(|row| row.result == result).count();
    let failed = count(junit::Result::Failed);
    for row in rows.iter().filter(|row| row.result == junit::Result::Failed) {
        println!("failed: {}\n        {}", row.test, row.reason);
    }
    println!(
        "{} tests: {} passed, {failed} failed, {} skipped; the table is {}",
        rows.len(),
        count(junit::Result::Passed),
        count(junit::Result::Skipped),
        options.table.display()
    );
    Ok(failed == 0)
}
