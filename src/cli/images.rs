//! Images and logs: how they are pulled, and when they go.

use std::num::NonZeroUsize;
use std::sync::Arc;

use stoker_model::quantity::{Milli, QuantityError};

use crate::clock::Clock;
use crate::config::{CredentialProvider, Flags, KubeletConfig, ProviderError, load_credential_providers};
use crate::runtime::gc::ImagePolicy;
use crate::runtime::logs::RotationConfig;
use crate::runtime::plugins::{Plugin, PluginTokens, Plugins};
use crate::runtime::{BadPolicy, Images, NodeCredentials, PullRecords, Runtime, VerificationPolicy};

/// Which setting cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImagesError {
    #[error("KubeletConfiguration: containerLogMaxSize: {0}")]
    LogSize(#[from] QuantityError),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Policy(#[from] BadPolicy),
}

/// How images are pulled (A14.3, A14.4).
pub(super) fn images(
    runtime: &Runtime,
    config: &KubeletConfig,
    flags: &Flags,
    records: Arc<PullRecords>,
) -> Result<Images, ImagesError> {
    let number = |number: i32| u32::try_from(number).unwrap_or_default();
    let credentials = NodeCredentials { root_dir: Some(flags.root_dir.clone()), plugins: plugins(flags)? };
    Ok(Images::new(runtime.clone(), at_once(config))
        .with_rate(number(config.registry_pull_qps), number(config.registry_burst))
        .with_records(records)
        .with_node_credentials(credentials))
}

/// How many pulls are under way at most.
fn at_once(config: &KubeletConfig) -> NonZeroUsize {
    if config.serialize_image_pulls {
        return NonZeroUsize::MIN;
    }
    let most = usize::try_from(config.max_parallel_image_pulls).ok().and_then(NonZeroUsize::new);
    most.unwrap_or(NonZeroUsize::MAX)
}

/// Who may use images that are there (A14.6).
pub(super) fn pull_records(
    config: &KubeletConfig,
    flags: &Flags,
    clock: Clock,
) -> Result<Arc<PullRecords>, ImagesError> {
    let policy = VerificationPolicy::new(
        &config.image_pull_credentials_verification_policy,
        &config.preloaded_images_verification_allowlist,
    )?;
    Ok(Arc::new(PullRecords::new(&flags.root_dir, policy, clock)))
}

fn plugins(flags: &Flags) -> Result<Plugins, ProviderError> {
    let (config, folder) = match (&flags.credential_providers, &flags.credential_provider_programs) {
        (None, None) => return Ok(Plugins::default()),
        (Some(config), Some(folder)) => (config, folder),
        _ => return Err(ProviderError::OneFlag),
    };
    let plugin = |provider: CredentialProvider| {
        let program = folder.join(&provider.name);
        let executable = rustix::fs::access(&program, rustix::fs::Access::EXEC_OK).is_ok() && program.is_file();
        if !executable {
            return Err(ProviderError::NoProgram(program));
        }
        Ok(Plugin {
            program,
            args: provider.args,
            env: provider.env,
            api_version: provider.api_version,
            match_images: provider.match_images,
            default_cache: provider.default_cache,
            tokens: provider.tokens.map(|tokens| PluginTokens {
                audience: tokens.audience,
                required: tokens.required,
                per_token: tokens.per_token,
                required_annotations: tokens.required_annotations,
                optional_annotations: tokens.optional_annotations,
            }),
        })
    };
    Ok(Plugins::new(load_credential_providers(config)?.into_iter().map(plugin).collect::<Result<_, _>>()?))
}

/// When images go that nobody uses (A14.8).
pub(super) fn image_policy(config: &KubeletConfig) -> ImagePolicy {
    let percent = |number: i32| u8::try_from(number.clamp(0, 100)).unwrap_or(100);
    ImagePolicy {
        high_percent: percent(config.image_gc_high_threshold_percent),
        low_percent: percent(config.image_gc_low_threshold_percent),
        min_age: config.image_minimum_gc_age.0,
        max_age: config.image_maximum_gc_age.0,
    }
}

/// When logs are rotated (A20.5).
pub(super) fn rotation_config(config: &KubeletConfig) -> Result<RotationConfig, ImagesError> {
    let number = |number: i32| usize::try_from(number).unwrap_or_default();
    Ok(RotationConfig {
        max_size: u64::try_from(Milli::parse(&config.container_log_max_size)?.units()).unwrap_or_default(),
        max_files: number(config.container_log_max_files),
        workers: number(config.container_log_max_workers),
        interval: config.container_log_monitor_interval.0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::GoDuration;

    const fn seconds(number: u64) -> GoDuration {
        GoDuration(Duration::from_secs(number))
    }

    #[test]
    fn pulls_come_one_after_the_other_unless_the_operator_wants_more() {
        // A14.3
        let plain = KubeletConfig::default();
        assert_eq!(at_once(&plain).get(), 1);
        assert_eq!((plain.registry_pull_qps, plain.registry_burst), (5, 10));
        let parallel = |most| KubeletConfig {
            serialize_image_pulls: false,
            max_parallel_image_pulls: most,
            ..KubeletConfig::default()
        };
        assert_eq!(at_once(&parallel(0)), NonZeroUsize::MAX, "as many as there are");
        assert_eq!(at_once(&parallel(3)).get(), 3);
    }

    #[test]
    fn pulls_rotation_and_collection_are_configured() {
        // A22.1e, A22.1i
        let config = KubeletConfig {
            image_minimum_gc_age: seconds(7),
            image_maximum_gc_age: seconds(8),
            image_gc_high_threshold_percent: 70,
            image_gc_low_threshold_percent: 60,
            container_log_max_size: "7Mi".into(),
            container_log_max_files: 8,
            container_log_max_workers: 9,
            container_log_monitor_interval: seconds(11),
            image_pull_credentials_verification_policy: "AlwaysVerify".into(),
            ..KubeletConfig::default()
        };
        let policy = image_policy(&config);
        assert_eq!((policy.high_percent, policy.low_percent), (70, 60));
        assert_eq!((policy.min_age, policy.max_age), (seconds(7).0, seconds(8).0));
        let found = rotation_config(&config).expect("it can be read");
        let expected = RotationConfig { max_size: 7 << 20, max_files: 8, workers: 9, interval: seconds(11).0 };
        assert_eq!(found, expected);
        let policy = |policy: &str, list: &[&str]| {
            let list: Vec<String> = list.iter().map(|image| (*image).to_owned()).collect();
            VerificationPolicy::new(policy, &list)
        };
        let of = |config: &KubeletConfig| {
            let list = &config.preloaded_images_verification_allowlist;
            VerificationPolicy::new(&config.image_pull_credentials_verification_policy, list)
        };
        assert_eq!(of(&config).expect("known"), policy("AlwaysVerify", &[]).expect("known"));
        assert_eq!(
            of(&KubeletConfig::default()).expect("known"),
            policy("NeverVerifyPreloadedImages", &[]).expect("known")
        );
        assert!(policy("Sometimes", &[]).is_err());
    }

    #[test]
    fn logs_have_ten_mebibytes_and_five_files() {
        // A20.5
        let found = rotation_config(&KubeletConfig::default()).expect("it can be read");
        let expected =
            RotationConfig { max_size: 10 << 20, max_files: 5, workers: 1, interval: Duration::from_secs(10) };
        assert_eq!(found, expected);
    }

    #[test]
    fn images_stay_for_two_minutes_and_go_between_two_shares_of_the_disk() {
        // A14.8
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let policy = image_policy(&KubeletConfig::default());
        assert_eq!((policy.high_percent, policy.low_percent), (85, 80));
        assert_eq!((policy.min_age, policy.max_age), (minutes(2), Duration::ZERO));
    }
}
