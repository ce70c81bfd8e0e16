//! `stoker-control-plane token`: bootstrap tokens, by which new nodes join (C6.1), as `kubeadm token` makes them.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use crate::auth::bootstrap_token::{TOKEN_NAMESPACE, TOKEN_PREFIX, TOKEN_TYPE, data, expires, is_group, split_token};
use crate::clock;

/// The API's path of the Secrets.
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
/// What a token may be for.
const USAGES: [&str; 2] = ["signing", "authentication"];

/// Options of `token`.
#[derive(Debug, Args)]
pub(super) struct TokenOptions {
    /// The control plane's data directory, where its administrator's kubeconfig is.
    #[arg(long, global = true, default_value = "/var/lib/stoker-control-plane")]
    data_dir: PathBuf,
    /// Another kubeconfig to ask with.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token and print it.
    Create(CreateOptions),
    /// Print all tokens.
    List {
        /// How: a table, or JSON.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Remove tokens, given whole or by their ids (the six characters before the dot).
    Delete {
        /// Which.
        #[arg(required = true)]
        tokens: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct CreateOptions {
    /// The token, as [a-z0-9]{6}.[a-z0-9]{16}; by default a random one.
    token: Option<String>,
    /// How long it lasts, such as 2h; 0 is for ever.
    #[arg(long, default_value = "24h")]
    ttl: String,
    /// What it is for, for people.
    #[arg(long, default_value = "")]
    description: String,
    /// Groups that it puts its users in; each begins with system:bootstrappers:
    #[arg(long, value_delimiter = ',', default_value = "system:bootstrappers:kubeadm:default-node-token")]
    groups: Vec<String>,
    /// What it may be used for.
    #[arg(long, value_delimiter = ',', default_values_t = USAGES.map(str::to_owned))]
    usages: Vec<String>,
    /// Print, instead of the token, the command that joins a node with it.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "kubeadm")]
    print_join_command: Option<JoinCommand>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum JoinCommand {
    Kubeadm,
    Stoker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Why a token could not be made, shown or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenCommandError {
    /// The API server did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No token.
    #[error("{0:?} is no token: it must have the form [a-z0-9]{{6}}.[a-z0-9]{{16}}")]
    Token(String),
    /// No token's id.
    #[error("{0:?} is neither a token nor a token's id of six characters of [a-z0-9]")]
    Id(String),
    /// No time.
    #[error("--ttl {0:?} is no time such as 2h or 90m, nor 0")]
    Ttl(String),
    /// No use.
    #[error("--usages {0:?}: a token is for signing, for authentication, or both")]
    Usage(String),
    /// No group.
    #[error("--groups {0:?}: the groups of a token begin with system:bootstrappers:")]
    Group(String),
    /// No randomness.
    #[error("the system has no randomness to make a token of")]
    Random,
}

/// Does it.
pub(super) async fn run(options: TokenOptions) -> Result<(), TokenCommandError> {
    let kubeconfig = options.kubeconfig.unwrap_or_else(|| options.data_dir.join("admin.kubeconfig"));
    let client = Client::read(&kubeconfig)?;
    match options.action {
        Action::Create(create_options) => create(&client, create_options).await,
        Action::List { output } => list(&client, output).await,
        Action::Delete { tokens } => delete(&client, &tokens).await,
    }
}

async fn create(client: &Client, options: CreateOptions) -> Result<(), TokenCommandError> {
    let token = match options.token {
        Some(token) => token,
        None => format!("{}.{}", random(6)?, random(16)?),
    };
    let (id, secret) = split_token(&token).ok_or_else(|| TokenCommandError::Token(token.clone()))?;
    let mut texts = vec![
        ("token-id".to_owned(), id.to_owned()),
        ("token-secret".to_owned(), secret.to_owned()),
        ("description".to_owned(), options.description),
    ];
    if let Some(end) = end(&options.ttl, clock::now())? {
        texts.push(("expiration".to_owned(), clock::seconds_text(end)));
    }
    for usage in options.usages {
        if !USAGES.contains(&usage.as_str()) {
            return Err(TokenCommandError::Usage(usage));
        }
        texts.push((format!("usage-bootstrap-{usage}"), "true".to_owned()));
    }
    if let Some(group) = options.groups.iter().find(|group| !is_group(group)) {
        return Err(TokenCommandError::Group(group.clone()));
    }
    texts.push(("auth-extra-groups".to_owned(), options.groups.join(",")));
    let encoded: serde_json::Map<String, Value> = texts
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| (key, json!(STANDARD.encode(text))))
        .collect();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": TOKEN_TYPE, "data": encoded,
        "metadata": {"name": format!("{TOKEN_PREFIX}{id}"), "namespace": TOKEN_NAMESPACE},
    });
    client.send("POST", SECRETS, Some(&secret)).await?;
    let (server, hash) = (client.server(), client.ca_hash()?);
    match options.print_join_command {
        None => println!("{token}"),
        Some(JoinCommand::Kubeadm) => {
            let host = server.trim_start_matches("https://");
            println!("kubeadm join {host} --token {token} --discovery-token-ca-cert-hash {hash}");
        }
        Some(JoinCommand::Stoker) => println!("stoker join {server} --token {token} --ca-hash {hash}"),
    }
    Ok(())
}

async fn list(client: &Client, output: Output) -> Result<(), TokenCommandError> {
    let all =
        client.send("GET", &format!("{SECRETS}?fieldSelector=type%3D{}", TOKEN_TYPE.replace('/', "%2F")), None).await?;
    let now = clock::now();
    let tokens: Vec<Value> = all["items"].as_array().into_iter().flatten().map(|secret| shown(secret, now)).collect();
    if output == Output::Json {
        println!("{:#}", Value::Array(tokens));
        return Ok(());
    }
    println!("{:<25} {:<10} {:<22} {:<24} {:<40} EXTRA GROUPS", "TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION");
    for token in tokens {
        let text = |key: &str| token[key].as_str().unwrap_or_default().to_owned();
        println!(
            "{:<25} {:<10} {:<22} {:<24} {:<40} {}",
            text("token"),
            text("ttl"),
            text("expires"),
            text("usages"),
            text("description"),
            text("groups"),
        );
    }
    Ok(())
}

fn shown(secret: &Value, now: Timestamp) -> Value {
    let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
    let end = expires(secret);
    let ttl = match end {
        None => "<forever>".to_owned(),
        Some(end) if end <= now => "<invalid>".to_owned(),
        Some(end) => hours(end.duration_since(now)),
    };
    let usages: Vec<&str> = ["authentication", "signing"]
        .into_iter()
        .filter(|usage| data(secret, &format!("usage-bootstrap-{usage}")) == "true")
        .collect();
    json!({
        "token": format!("{}.{}", data(secret, "token-id"), data(secret, "token-secret")),
        "ttl": ttl,
        "expires": end.map_or_else(|| "<never>".to_owned(), clock::seconds_text),
        "usages": or(usages.join(","), "<none>"),
        "description": or(data(secret, "description"), "<none>"),
        "groups": or(data(secret, "auth-extra-groups"), "<none>"),
    })
}

fn hours(left: SignedDuration) -> String {
    match left.as_hours() {
        0 => format!("{}m", left.as_mins()),
        hours => format!("{hours}h"),
    }
}

async fn delete(client: &Client, tokens: &[String]) -> Result<(), TokenCommandError> {
    for token in tokens {
        let id = split_token(token).map_or(token.as_str(), |(id, _)| id);
        let is_id = id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !is_id {
            return Err(TokenCommandError::Id(token.clone()));
        }
        client.send("DELETE", &format!("{SECRETS}/{TOKEN_PREFIX}{id}"), None).await?;
        println!("bootstrap token {id:?} deleted");
    }
    Ok(())
}

/// When a token that lasts `ttl` ends.
fn end(ttl: &str, now: Timestamp) -> Result<Option<Timestamp>, TokenCommandError> {
    if ttl == "0" {
        return Ok(None);
    }
    let wrong = || TokenCommandError::Ttl(ttl.to_owned());
    let life: SignedDuration = ttl.parse().map_err(|_| wrong())?;
    match (life.is_zero(), life.is_negative()) {
        (true, _) => Ok(None),
        (_, true) => Err(wrong()),
        _ => now.checked_add(life).map(Some).map_err(|_| wrong()),
    }
}

fn random(length: usize) -> Result<String, TokenCommandError> {
    const SIGNS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let (source, mut text, mut byte) = (SystemRandom::new(), String::new(), [0]);
    while text.len() < length {
        source.fill(&mut byte).map_err(|_| TokenCommandError::Random)?;
        // 252 is the largest multiple of 36: no sign comes more often than another.
        if byte[0] < 252 {
            text.push(char::from(SIGNS[usize::from(byte[0]) % SIGNS.len()]));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read_as_kubeadm_writes_them() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (ttl, expected) in [
            ("24h", Some("2026-01-02T00:00:00Z")),
            ("24h0m0s", Some("2026-01-02T00:00:00Z")),
            ("90m", Some("2026-01-01T01:30:00Z")),
            ("0", None),
            ("0s", None),
        ] {
            assert_eq!(end(ttl, now).unwrap(), expected.map(|text| text.parse().unwrap()), "{ttl}");
        }
        assert!(end("-1h", now).is_err() && end("soon", now).is_err());
        assert!(split_token(&format!("{}.{}", random(6).unwrap(), random(16).unwrap())).is_some());
    }
}
