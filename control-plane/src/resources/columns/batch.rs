//! Columns of batch (C4.8, C4.9).

use jiff::Timestamp;
use serde_json::Value;

use super::access::{condition, flag, get, items, number, text, time};
use super::{
    AGE, Cells, HumanDuration, NAME, Printer, integer, seconds_between, selector_cell, string, template_cells, wide,
};

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Job" => &JOB,
        "CronJob" => &CRON_JOB,
        _ => return None,
    })
}

static JOB: Printer = Printer::new(
    &[
        NAME,
        string("Status"),
        string("Completions"),
        string("Duration"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    job_row,
);

fn job_row(job: &Value, now: Timestamp, cells: &mut Cells<'_>) {
    cells.name(job);
    let has = |kind: &str| condition(job, kind) == "True";
    cells.text(if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !get(job, &["metadata", "deletionTimestamp"]).is_null() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else {
        "Running"
    });
    let succeeded = number(job, &["status", "succeeded"]);
    let parallelism = number(job, &["spec", "parallelism"]);
    match get(job, &["spec", "completions"]).as_i64() {
        Some(completions) => cells.display(format_args!("{succeeded}/{completions}")),
        None if parallelism > 1 => cells.display(format_args!("{succeeded}/1 of {parallelism}")),
        None => cells.display(format_args!("{succeeded}/1")),
    }
    match time(job, &["status", "startTime"]) {
        None => cells.text(""),
        Some(start) => {
            let end = time(job, &["status", "completionTime"]).unwrap_or(now);
            cells.display(HumanDuration(seconds_between(start, end)));
        }
    }
    cells.age(job, now);
    template_cells(job, cells);
    selector_cell(job, cells);
}

static CRON_JOB: Printer = Printer::new(
    &[
        NAME,
        string("Schedule"),
        string("Timezone"),
        string("Suspend"),
        integer("Active"),
        string("Last Schedule"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |cron, now, cells| {
        cells.name(cron);
        cells.text(text(cron, &["spec", "schedule"]));
        cells.or_none(text(cron, &["spec", "timeZone"]));
        cells.text(if flag(cron, &["spec", "suspend"]) { "True" } else { "False" });
        cells.integer(i64::try_from(items(cron, &["status", "active"]).len()).unwrap_or(i64::MAX));
        match time(cron, &["status", "lastScheduleTime"]) {
            None => cells.text("<none>"),
            last => cells.since(last, now),
        }
        cells.age(cron, now);
        let job = get(cron, &["spec", "jobTemplate"]);
        template_cells(job, cells);
        selector_cell(job, cells);
    },
);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::check;

    #[test]
    fn jobs() {
        // C4.8
        let job = json!({"kind": "Job", "spec": {"completions": 3}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:05:00Z"}});
        check("batch", job, &[("Status", json!("Running")), ("Completions", json!("1/3")), ("Duration", json!("5m"))]);
        let job = json!({"kind": "Job", "spec": {"parallelism": 3}, "status": {"succeeded": 2, "conditions": [{"type": "Complete", "status": "True"}]}});
        check(
            "batch",
            job,
            &[("Status", json!("Complete")), ("Completions", json!("2/1 of 3")), ("Duration", json!(""))],
        );
    }

    #[test]
    fn cron_jobs() {
        // C4.9
        let cron =
            json!({"kind": "CronJob", "spec": {"schedule": "* * * * *", "suspend": false}, "status": {"active": [{}]}});
        check(
            "batch",
            cron,
            &[
                ("Timezone", json!("<none>")),
                ("Suspend", json!("False")),
                ("Active", json!(1)),
                ("Last Schedule", json!("<none>")),
            ],
        );
    }
}
