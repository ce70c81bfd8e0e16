//! Commands of probes, run by the runtime.

use std::time::Duration;

use async_trait::async_trait;

use crate::probe::{Ended, Exec, ExecError};
use crate::runtime::{Runtime, RuntimeError};

/// Runs commands through CRI `ExecSync` (A5.11).
pub(super) struct Commands(pub(super) Runtime);

#[async_trait]
impl Exec for Commands {
    async fn exec(&self, container_id: &str, command: Vec<String>, limit: Duration) -> Result<Ended, ExecError> {
        match self.0.exec_sync(container_id, command, limit).await {
            Ok(answer) => {
                let output = [&answer.stdout[..], &answer.stderr[..]].concat();
                Ok(Ended { exit_code: answer.exit_code, output })
            }
            Err(RuntimeError::TimedOut { .. }) => Err(ExecError::TimedOut),
            Err(error) => Err(ExecError::Failed(error.to_string())),
        }
    }
}
