//! The feature gates that Kubernetes 1.36 knows: which ones may be set, and which of them change anything here (A22.2f).

use std::collections::BTreeMap;

use super::validate::{Invalid, invalid};

/// On, and may be switched off.
const ON: &str = "\
    APIResponseCompression APIServerIdentity AllowParsingUserUIDFromCertAuth AllowServiceExternalIPs AtomicFIFO \
    AuthorizePodWebsocketUpgradeCreatePermission CPUManagerPolicyBetaOptions CRDObservedGenerationTracking \
    ClearingNominatedNodeNameAfterBinding ClientsAllowCARotation ClientsAllowTLSCacheGC ComponentFlagz \
    ComponentStatusz ConstrainedImpersonation ContainerCheckpoint ContainerRestartRules ContextualLogging \
    CustomCPUCFSQuotaPeriod CustomResourceFieldSelectors DRAConsumableCapacity DRADeviceBindingConditions \
    DRADeviceTaints DRAExtendedResource DRAPartitionableDevices DRAPrioritizedList DRAResourceClaimDeviceStatus \
    DRAResourceClaimGranularStatusAuthorization DRASchedulerFilterTimeout DeclarativeValidationBeta \
    DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency DisableCPUQuotaWithExclusiveCPUs EnvFiles \
    ExtendWebSocketsToKubelet GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority HPAConfigurableTolerance \
    HostnameOverride InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling \
    InPlacePodVerticalScalingInitContainers InformerResourceVersion KubeletCrashLoopBackOffMax \
    KubeletEnsureSecretPulledImages KubeletPodResourcesListUseActivePods KubeletSeparateDiskGC \
    KubeletServiceAccountTokenForCredentialProviders ListFromCacheSnapshot LoggingBetaOptions LoggingStableOptions \
    MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge \
    MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs MutatingAdmissionPolicy \
    NodeDeclaredFeatures NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching PLEGOnDemandRelist \
    PodDeletionCost PodLevelResources PodReadyToStartContainersCondition PodTopologyLabelsAdmission \
    PortForwardWebsockets PreventStaticPodAPIReferences RelaxedServiceNameValidation ReloadKubeletClientCAFile \
    ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResourceHealthStatus ResourceHealthStatusMessage \
    RestartAllContainersOnContainerExits RetryGenerateName RotateKubeletServerCertificate SchedulerAsyncPreemption \
    SchedulerPopFromBackoffQ ServiceAccountNodeAudienceRestriction ServiceCIDRStatusFieldWiping SidecarContainers \
    SizeBasedListCostEstimate StaleControllerConsistencyDaemonSet StaleControllerConsistencyJob \
    StaleControllerConsistencyReplicaSet StaleControllerConsistencyStatefulSet StatefulSetSemanticRevisionComparison \
    StorageNamespaceIndex StorageVersionHash StrictIPCIDRValidation \
    StructuredAuthenticationConfigurationEgressSelector StructuredAuthenticationConfigurationJWKSMetrics \
    TokenRequestServiceAccountUIDValidation TopologyManagerPolicyBetaOptions TranslateStreamCloseWebsocketRequests \
    UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy UnlockWhileProcessingFIFO \
    WatchCacheInitializationPostStartHook WatchList WatchListClient WindowsGracefulNodeShutdown";

/// Off, and may be switched on.
const OFF: &str = "\
    APIServingWithRoutine AllAlpha AllBeta AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests \
    AllowUnsafeMalformedObjectDeletion CBORServingAndStorage CPUManagerPolicyAlphaOptions CRIListStreaming \
    CSIVolumeHealth ChangeContainerStatusOnKubeletRestart ClientsAllowCBOR ClientsPreferCBOR \
    CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook ClusterTrustBundle \
    ClusterTrustBundleProjection ConcurrentWatchObjectDecode ContainerStopSignals \
    ControllerManagerReleaseLeaderElectionLockOnExit CoordinatedLeaderElection CrossNamespaceVolumeDataSource \
    DRADeviceTaintRules DRAListTypeAttributes DRANodeAllocatableResources DRAResourcePoolStatus \
    DRAWorkloadResourceClaims DeclarativeValidationTakeover EventedPLEG GangScheduling GenericWorkload \
    HPAScaleToZero ImageVolumeWithDigest InPlacePodVerticalScalingExclusiveCPUs \
    InPlacePodVerticalScalingExclusiveMemory KMSv1 KubeletInUserNamespace KubeletRegistrationGetOnExistsOnly \
    LocalStorageCapacityIsolationFSQuotaMonitoring LoggingAlphaOptions ManifestBasedAdmissionControlConfig \
    MaxUnavailableStatefulSet MemoryQoS MutablePVNodeAffinity PersistentVolumeClaimUnusedSinceTime \
    PodAndContainerStatsFromCRI PodCertificateRequest PodLevelResourceManagers PodLogsQuerySplitStreams PodsAPI \
    QOSReserved ReduceDefaultCrashLoopBackOffDecay RuntimeClassInImageCriApi SELinuxMount SchedulerAsyncAPICalls \
    SeparateCacheWatchRPC ShardedListAndWatch StorageCapacityScoring StorageVersionAPI StorageVersionMigrator \
    TaintTolerationComparisonOperators TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions \
    UserNamespacesHostNetworkSupport VolumeLimitScaling WindowsCPUAndMemoryAffinity WindowsHostNetwork \
    WorkloadAwarePreemption WorkloadWithJob";

/// On for good.
const LOCKED_ON: &str = "\
    APIServerTracing AggregatedDiscoveryRemoveBetaType AnonymousAuthConfigurableEndpoints AnyVolumeDataSource \
    AuthorizeNodeWithSelectors AuthorizeWithSelectors BtreeWatchCache CPUManagerPolicyOptions \
    CRDValidationRatcheting CSIServiceAccountTokenSecrets ConsistentListFromCache DRAAdminAccess \
    DeclarativeValidation DisableAllocatorDualWrite DisableNodeKubeProxyVersion DynamicResourceAllocation \
    ExecProbeTimeout ExternalServiceAccountTokenSigner ImageMaximumGCAge ImageVolume InOrderInformers \
    InPlacePodVerticalScaling JobBackoffLimitPerIndex JobManagedBy JobPodReplacementPolicy JobSuccessPolicy \
    KubeletCgroupDriverFromCRI KubeletFineGrainedAuthz KubeletPSI KubeletPodResourcesDynamicResources \
    KubeletPodResourcesGet KubeletTracing LogarithmicScaleDown MatchLabelKeysInPodAffinity MultiCIDRServiceAllocator \
    MutableCSINodeAllocatableCount NFTablesProxyMode NodeInclusionPolicyInPodTopologySpread NodeLogQuery NodeSwap \
    OrderedNamespaceDeletion PodLifecycleSleepAction PodLifecycleSleepActionAllowZero PodObservedGenerationTracking \
    PodSchedulingReadiness PreferSameTrafficDistribution ProcMountType RecoverVolumeExpansionFailure \
    RecursiveReadOnlyMounts RelaxedDNSSearchValidation RelaxedEnvironmentVariableValidation \
    ResilientWatchCacheInitialization SELinuxChangePolicy SELinuxMountReadWriteOncePod SchedulerQueueingHints \
    SeparateTaintEvictionController ServiceAccountTokenJTI ServiceAccountTokenNodeBinding \
    ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo StreamingCollectionEncodingToJSON \
    StreamingCollectionEncodingToProtobuf StructuredAuthenticationConfiguration SupplementalGroupsPolicy \
    SystemdWatchdog TopologyManagerPolicyOptions UserNamespacesSupport VolumeAttributesClass WinDSR WinOverlay";

/// Off for good.
const LOCKED_OFF: &str = "\
    AllowOverwriteTerminationGracePeriodSeconds GitRepoVolumeDriver";

/// What is asked for here.
const HEEDED: [&str; 6] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "NodeDeclaredFeatures",
    "PodLevelResources",
    "RestartAllContainersOnContainerExits",
];

/// What a gate is by default, and whether it stays so; `None`: there is no such gate.
fn gate(name: &str) -> Option<(bool, bool)> {
    let lists = [(ON, (true, false)), (OFF, (false, false)), (LOCKED_ON, (true, true)), (LOCKED_OFF, (false, true))];
    lists.into_iter().find(|(names, _)| names.split_whitespace().any(|known| known == name)).map(|(_, gate)| gate)
}

/// The first gate that is unknown, or that may not be set so.
pub(super) fn check(gates: &BTreeMap<String, bool>) -> Result<(), Invalid> {
    for (name, on) in gates {
        match gate(name) {
            None => {
                return Err(invalid("featureGates", name, format!("is not known: unrecognized feature gate: {name}")));
            }
            Some((locked_to, true)) if locked_to != *on => {
                let text =
                    format!("cannot be {on}: cannot set feature gate {name} to {on}, feature is locked to {locked_to}");
                return Err(invalid("featureGates", name, text));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Gates that were switched in vain.
pub(super) fn in_vain(gates: &BTreeMap<String, bool>) -> Vec<&str> {
    let differs = |(name, on): &(&String, &bool)| gate(name).is_some_and(|(default, _)| default != **on);
    let switched = gates.iter().filter(differs).map(|(name, _)| name.as_str());
    switched.filter(|name| !HEEDED.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_those_of_1_36() {
        // A22.2f
        let set = |name: &str, on| check(&BTreeMap::from([(name.to_owned(), on)]));
        for name in [
            "ContainerStopSignals",
            "EventedPLEG",
            "MemoryQoS",
            "PodAndContainerStatsFromCRI",
            "PodLogsQuerySplitStreams",
            "ReduceDefaultCrashLoopBackOffDecay",
            "RuntimeClassInImageCriApi",
            "UserNamespacesHostNetworkSupport",
            "QOSReserved",
            "PodsAPI",
            "ClusterTrustBundleProjection",
            "PodCertificateRequest",
            "SELinuxMount",
        ] {
            assert_eq!(gate(name), Some((false, false)), "{name}");
            assert!(set(name, true).is_ok() && set(name, false).is_ok());
        }
        let unknown = set("NoSuchGate", true).expect_err("unknown").to_string();
        assert!(unknown.contains("unrecognized feature gate: NoSuchGate"), "{unknown}");
        assert!(set("AllAlpha", true).is_ok() && set("GracefulNodeShutdown", true).is_ok());
        let locked = LOCKED_ON.split_whitespace().next().expect("there are some");
        assert!(set(locked, true).is_ok());
        let refused = set(locked, false).expect_err("locked").to_string();
        assert!(refused.contains(&format!("cannot set feature gate {locked} to false, feature is locked to true")));
        let mut all: Vec<&str> = [ON, OFF, LOCKED_ON, LOCKED_OFF].into_iter().flat_map(str::split_whitespace).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "one is there twice");
    }

    #[test]
    fn switches_without_a_wire_are_told() {
        // A22.2f
        let gates = [("MemoryQoS", true), ("EventedPLEG", false), ("ExtendWebSocketsToKubelet", false)];
        let gates = gates.into_iter().map(|(name, on)| (name.to_owned(), on)).collect();
        assert_eq!(in_vain(&gates), ["MemoryQoS"]);
    }
}
