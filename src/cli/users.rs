//! The IDs that the operator has set aside for pods with users of their own (A11.2): those of the user `kubelet` in `/etc/subuid` and
//! `/etc/subgid`, asked of `getsubids`, for they may come from elsewhere.

use std::io::ErrorKind;
use std::process::{Command, Output};

use crate::pod::IdRange;

const USER: &str = "kubelet";

/// Why it is not known which IDs pods may have.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdsError {
    #[error("error retrieving additional IDs for user \"kubelet\" with {command}: {why}")]
    Asked { command: String, why: String },
    #[error("{command} says {said:?}: it must be one line such as \"0: kubelet 65536 7208960\"")]
    Said { command: String, said: String },
    #[error("the IDs of user kubelet in /etc/subuid and /etc/subgid must be the same, not {0:?} and {1:?}")]
    Differ(IdRange, IdRange),
}

/// All IDs but the node's own, unless there is a user `kubelet` that has some.
pub(super) fn ids_of_pods(per_pod: u32) -> Result<IdRange, IdsError> {
    let all = IdRange { first: per_pod, length: 0u32.wrapping_sub(per_pod) };
    if run("getent", &["passwd", USER])?.is_none_or(|output| !output.status.success()) {
        return Ok(all);
    }
    let Some(users) = run("getsubids", &[USER])? else { return Ok(all) };
    let Some(groups) = run("getsubids", &["-g", USER])? else { return Ok(all) };
    let (users, groups) = (range("getsubids kubelet", &users)?, range("getsubids -g kubelet", &groups)?);
    if users == groups { Ok(users) } else { Err(IdsError::Differ(users, groups)) }
}

/// `None`: there is no such program.
fn run(program: &str, arguments: &[&str]) -> Result<Option<Output>, IdsError> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(IdsError::Asked { command: format!("{program} {}", arguments.join(" ")), why: error.to_string() })
        }
    }
}

fn range(command: &str, output: &Output) -> Result<IdRange, IdsError> {
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(IdsError::Asked { command: command.to_owned(), why });
    }
    let said = String::from_utf8_lossy(&output.stdout);
    parsed(&said).ok_or_else(|| IdsError::Said { command: command.to_owned(), said: said.into_owned() })
}

/// One line of four words, the last two of which are numbers.
fn parsed(said: &str) -> Option<IdRange> {
    let mut lines = said.trim_matches('\n').split('\n');
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, _, first, length] = words[..] else { return None };
    Some(IdRange { first: first.parse().ok()?, length: length.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_taken_from_what_getsubids_says() {
        // A11.2
        assert_eq!(parsed("0: kubelet 65536 2147483648\n"), Some(IdRange { first: 65536, length: 2_147_483_648 }));
        for said in
            ["", "0: kubelet 65536", "0: kubelet 1 2\n1: kubelet 3 4\n", "0: kubelet x 2", "0: kubelet 1 4294967296"]
        {
            assert_eq!(parsed(said), None, "{said}");
        }
        let all = ids_of_pods(65536).unwrap();
        assert_eq!((all.first, all.length), (65536, u32::MAX - 65535), "there is no user kubelet here");
    }
}
