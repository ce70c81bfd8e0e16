//! batch/v1 (C1.3).

use k8s_openapi::api::batch::v1 as api;

use super::{ResourceInfo, STATUS, SelectableField, workload};

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::CronJob>("batch", "v1", "CronJob", "cronjobs", "cronjob")
        .namespaced()
        .short(&["cj"])
        .in_all()
        .with_status()
        .subresources(&[STATUS])
        .defaults(workload::default_cron_job)
        .validated(workload::validate_cron_job),
    ResourceInfo::of::<api::Job>("batch", "v1", "Job", "jobs", "job")
        .namespaced()
        .in_all()
        .with_status()
        .subresources(&[STATUS])
        .fields(&[SelectableField { name: "status.successful", path: "status.succeeded", absent: "0" }])
        .defaults(workload::default_job)
        .prepared(workload::prepare_job, |_, _| {})
        .validated(workload::validate_job)
        .validated_update(workload::validate_job_update),
];
