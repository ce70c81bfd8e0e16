//! `--image-credential-provider-config`: programs that know registries' passwords (A14.4).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::duration::GoDuration;
use super::load::ConfigError;

const KIND: &str = "kubelet.config.k8s.io/v1 CredentialProviderConfig";
/// What plugins speak.
const API_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// One program, and which images it is asked about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CredentialProvider {
    /// The program's name in `--image-credential-provider-bin-dir`.
    pub name: String,
    /// Registries, with globs in host names.
    pub match_images: Vec<String>,
    /// How long an answer holds that does not say.
    pub default_cache: Duration,
    /// The version that requests and answers have.
    pub api_version: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Variables beside the agent's own.
    pub env: Vec<(String, String)>,
    /// It is asked with tokens of the pods' service accounts.
    pub tokens: Option<ProviderTokens>,
}

/// `tokenAttributes`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProviderTokens {
    /// Whom the tokens are for.
    pub audience: String,
    /// Pods without a service account are not asked for.
    pub required: bool,
    /// `cacheType: Token`: an answer holds for one token, and so for one pod; otherwise for the service account.
    pub per_token: bool,
    /// Annotations of the service account that it must have, or else the program is not asked.
    pub required_annotations: Vec<String>,
    /// Those that the program is told besides.
    pub optional_annotations: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<GoDuration>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenAttributes {
    #[serde(default)]
    service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    require_service_account: Option<bool>,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

impl TokenAttributes {
    /// What is wrong is told in words.
    fn checked(self, api_version: &str) -> Result<ProviderTokens, String> {
        if self.service_account_token_audience.is_empty() {
            return Err("tokenAttributes.serviceAccountTokenAudience is missing".to_owned());
        }
        let Some(required) = self.require_service_account else {
            return Err("tokenAttributes.requireServiceAccount is missing".to_owned());
        };
        if api_version != API_VERSIONS[0] {
            return Err(format!("tokenAttributes is only supported for {}", API_VERSIONS[0]));
        }
        let (wanted, others) =
            (self.required_service_account_annotation_keys, self.optional_service_account_annotation_keys);
        if !required && !wanted.is_empty() {
            return Err("tokenAttributes.requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set".to_owned());
        }
        for (field, keys) in
            [("requiredServiceAccountAnnotationKeys", &wanted), ("optionalServiceAccountAnnotationKeys", &others)]
        {
            let distinct: BTreeSet<&String> = keys.iter().collect();
            if let Some(bad) = keys.iter().find(|key| !is_annotation_key(key)) {
                return Err(format!("tokenAttributes.{field}: {bad:?} is no key of an annotation"));
            }
            if distinct.len() < keys.len() {
                return Err(format!("tokenAttributes.{field}: a key is there twice"));
            }
        }
        if wanted.iter().any(|key| others.contains(key)) {
            return Err("tokenAttributes: annotation keys cannot be both required and optional".to_owned());
        }
        let per_token = match self.cache_type.as_str() {
            "Token" => true,
            "ServiceAccount" => false,
            other => return Err(format!("tokenAttributes.cacheType: {other:?} must be ServiceAccount or Token")),
        };
        Ok(ProviderTokens {
            audience: self.service_account_token_audience,
            required,
            per_token,
            required_annotations: wanted,
            optional_annotations: others,
        })
    }
}

/// A qualified name, upper case or not.
fn is_annotation_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let plain = |c: char| c.is_ascii_alphanumeric();
    let name_ok = (1..=63).contains(&name.len())
        && name.chars().all(|c| plain(c) || matches!(c, '-' | '_' | '.'))
        && name.starts_with(plain)
        && name.ends_with(plain);
    let label = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| plain(c) || c == '-')
            && part.starts_with(plain)
            && part.ends_with(plain)
    };
    name_ok && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(label))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

/// Why the providers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A file cannot be read or decoded.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directory holds no configuration.
    #[error("{0}: no *.json, *.yaml or *.yml with credential providers in this directory")]
    NoFiles(PathBuf),
    /// A value does not fit.
    #[error("{path}: providers[{name:?}]: {problem}")]
    Invalid {
        /// Where it stands.
        path: PathBuf,
        /// Of the provider.
        name: String,
        /// What to change.
        problem: String,
    },
    /// One of the two flags is missing.
    #[error(
        "--image-credential-provider-config and --image-credential-provider-bin-dir are of use together only: give both"
    )]
    OneFlag,
    /// The program is not there.
    #[error("{0}: this credential provider does not exist, or is not executable")]
    NoProgram(PathBuf),
}

/// Reads the file, or the files of a directory in the order of their names.
///
/// # Errors
/// Names file and provider.
pub fn load_credential_providers(path: &Path) -> Result<Vec<CredentialProvider>, ProviderError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| ProviderError::Config(ConfigError::Read { path, source })
    };
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files.clear();
        for entry in std::fs::read_dir(path).map_err(unreadable(path))? {
            let file = entry.map_err(unreadable(path))?.path();
            let is_config = file.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|known| e == *known));
            files.extend((is_config && !file.is_dir()).then_some(file));
        }
        files.sort();
        if files.is_empty() {
            return Err(ProviderError::NoFiles(path.to_owned()));
        }
    }
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(unreadable(&file))?;
        read(&file, &text, &mut all)?;
    }
    Ok(all)
}

fn read(path: &Path, text: &str, all: &mut Vec<CredentialProvider>) -> Result<(), ProviderError> {
    let path = path.to_owned();
    let file: File = serde_yaml_ng::from_str(text).map_err(|source| ConfigError::Decode {
        path: path.clone(),
        source,
        place: String::new(),
    })?;
    let found = format!("{} {}", file.api_version, file.kind);
    if found != KIND {
        return Err(ConfigError::WrongKind { path, found, expected: KIND }.into());
    }
    let mut names: BTreeSet<String> = all.iter().map(|provider| provider.name.clone()).collect();
    for mut provider in file.providers {
        let name = provider.name.clone();
        let invalid = |problem: &str| {
            Err(ProviderError::Invalid { path: path.clone(), name: name.clone(), problem: problem.to_owned() })
        };
        if provider.name.is_empty() || provider.name.contains(['/', ' ']) || [".", ".."].contains(&&*provider.name) {
            return invalid("name must be the name of a program, without / and spaces");
        }
        if !names.insert(provider.name.clone()) {
            return invalid("another provider has this name");
        }
        if !API_VERSIONS.contains(&&*provider.api_version) {
            return invalid("apiVersion must be credentialprovider.kubelet.k8s.io/v1, v1beta1 or v1alpha1");
        }
        if provider.match_images.is_empty() {
            return invalid("matchImages needs at least one registry");
        }
        let Some(default_cache) = provider.default_cache_duration else {
            return invalid("defaultCacheDuration is missing");
        };
        let tokens =
            match provider.token_attributes.take().map(|tokens| tokens.checked(&provider.api_version)).transpose() {
                Ok(tokens) => tokens,
                Err(problem) => return invalid(&problem),
            };
        all.push(CredentialProvider {
            name: provider.name,
            match_images: provider.match_images,
            default_cache: default_cache.0,
            api_version: provider.api_version,
            args: provider.args.unwrap_or_default(),
            env: provider.env.into_iter().flatten().map(|variable| (variable.name, variable.value)).collect(),
            tokens,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(name: &str, more: &str) -> String {
        format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: {name}\n  \
             apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: ['*.example']\n  \
             defaultCacheDuration: 1m\n{more}"
        )
    }

    #[test]
    fn files_of_a_directory_are_read_in_order() {
        // A14.4
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        assert!(matches!(load_credential_providers(folder.path()), Err(ProviderError::NoFiles(_))));
        write("b.yaml", &provider("second", "  args: [get]\n  env: [{name: A, value: b}]\n"));
        write("a.yml", &provider("first", ""));
        write("ignored.txt", "nonsense");
        let all = load_credential_providers(folder.path()).unwrap();
        assert_eq!(all.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
        assert_eq!(all[1].args, ["get"]);
        assert_eq!(all[1].env, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(all[0].default_cache, Duration::from_secs(60));
        write("c.json", &provider("first", ""));
        let error = load_credential_providers(folder.path()).unwrap_err().to_string();
        assert!(error.contains("c.json") && error.contains("another provider has this name"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        // A14.4
        let path = Path::new("/etc/providers.yaml");
        for (text, part) in [
            (provider("a/b", ""), "name must be"),
            (provider("a", "  unknown: 1\n"), "unknown"),
            (provider("a", "").replace("v1\n  match", "v9\n  match"), "apiVersion"),
            (provider("a", "").replace("['*.example']", "[]"), "matchImages"),
            (provider("a", "").replace("  defaultCacheDuration: 1m\n", ""), "defaultCacheDuration"),
            (provider("a", "").replace("CredentialProviderConfig", "Other"), "CredentialProviderConfig"),
        ] {
            let error = read(path, &text, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("providers.yaml"), "{error}");
        }
    }

    #[test]
    fn tokens_of_service_accounts_have_rules_of_their_own() {
        // A14.4
        let tokens = |fields: &str| provider("a", &format!("  tokenAttributes: {{{fields}}}\n"));
        let good = "serviceAccountTokenAudience: r.example, requireServiceAccount: true, cacheType: Token, \
                    requiredServiceAccountAnnotationKeys: [Example.com/Role], optionalServiceAccountAnnotationKeys: [zone]";
        let mut all = Vec::new();
        read(Path::new("/p"), &tokens(good), &mut all).unwrap();
        assert_eq!(
            all[0].tokens,
            Some(ProviderTokens {
                audience: "r.example".into(),
                required: true,
                per_token: true,
                required_annotations: vec!["Example.com/Role".into()],
                optional_annotations: vec!["zone".into()],
            })
        );
        let old = tokens(good).replace("kubelet.k8s.io/v1\n", "kubelet.k8s.io/v1beta1\n");
        for (text, part) in [
            (tokens(""), "serviceAccountTokenAudience is missing"),
            (tokens(&good.replace("requireServiceAccount: true, ", "")), "requireServiceAccount is missing"),
            (tokens(&good.replace(": true", ": false")), "requireServiceAccount cannot be false"),
            (tokens(&good.replace("cacheType: Token, ", "")), "must be ServiceAccount or Token"),
            (tokens(&good.replace("[zone]", "[zone, zone]")), "a key is there twice"),
            (tokens(&good.replace("[zone]", "[Example.com/Role]")), "both required and optional"),
            (tokens(&good.replace("[zone]", "['a b']")), "is no key of an annotation"),
            (tokens(&good.replace("[zone]", "[-.x/y]")), "is no key of an annotation"),
            (old, "only supported for credentialprovider.kubelet.k8s.io/v1"),
        ] {
            let error = read(Path::new("/p"), &text, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
