//! Cron schedules (C7.6): five fields, names, steps, lists, `@daily` and the like, `@every 1h`, and a zone. Pure.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};

/// No schedule is looked for longer: February 30th never comes.
const YEARS: i16 = 5;

/// Why a schedule cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CronError {
    #[error("expected exactly 5 fields, found {0}: {1}")]
    Fields(usize, String),
    #[error("failed to parse {0:?} as a part of a schedule")]
    Part(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("unknown time zone {0}")]
    Zone(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    Fields { minutes: u64, hours: u64, days: u64, months: u64, weekdays: u64, any_day: bool },
    Every(SignedDuration),
}

/// A schedule in its zone.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    when: When,
    zone: TimeZone,
}

impl Schedule {
    /// `zone` is the object's own; a `TZ=` before the schedule counts where there is none.
    pub(super) fn parse(text: &str, zone: Option<&str>) -> Result<Self, CronError> {
        let mut text = text.trim();
        let mut zone_name = zone.map(str::to_owned);
        for prefix in ["TZ=", "CRON_TZ="] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (name, after) = rest.split_once(' ').ok_or_else(|| CronError::Zone(rest.to_owned()))?;
                zone_name.get_or_insert_with(|| name.to_owned());
                text = after.trim();
            }
        }
        let zone = match zone_name {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(&name).map_err(|_| CronError::Zone(name))?,
        };
        Ok(Self { when: parse_when(text)?, zone })
    }

    /// The first time after `after`.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let When::Fields { minutes, hours, days, months, weekdays, any_day } = &self.when else {
            let When::Every(every) = &self.when else { return None };
            let second = Timestamp::from_second(after.as_second()).ok()?;
            return second.checked_add(*every).ok();
        };
        let has = |set: u64, value: i8| set & (1 << u32::try_from(value).unwrap_or(63)) != 0;
        let start = after.as_second().div_euclid(60) * 60 + 60;
        let mut at = Timestamp::from_second(start).ok()?.to_zoned(self.zone.clone());
        let last = at.year().saturating_add(YEARS);
        while at.year() <= last {
            let (day, weekday) = (has(*days, at.day()), has(*weekdays, at.weekday().to_sunday_zero_offset()));
            // With a star in either field both must fit, else one is enough.
            let fits = if *any_day { day && weekday } else { day || weekday };
            if !has(*months, at.month()) {
                at = first_of_next_month(&at)?;
            } else if !fits {
                at = at.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(*hours, at.hour()) {
                let into = i64::from(at.minute());
                at = at.checked_add((60 - into).minutes()).ok()?;
            } else if !has(*minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    /// The last time in `(after, now]`, and how many there were, counted up to a little more than 100.
    pub(super) fn last(&self, after: Timestamp, now: Timestamp) -> Option<(Timestamp, usize)> {
        let first = self.next(after).filter(|first| *first <= now)?;
        let Some(second) = self.next(first).filter(|second| *second <= now) else { return Some((first, 1)) };
        // Far behind, the middle is skipped: steps are even enough, and what matters is the last one.
        let step = second.duration_since(first);
        let missed = now.duration_since(first).as_secs() / step.as_secs().max(1) + 1;
        let mut at = second;
        if missed > 100 {
            let near = now.checked_sub(SignedDuration::from_secs(step.as_secs().saturating_mul(2))).ok()?;
            at = self.next(near.max(second)).filter(|next| *next <= now).unwrap_or(second);
        }
        while let Some(next) = self.next(at).filter(|next| *next <= now) {
            at = next;
        }
        Some((at, usize::try_from(missed).unwrap_or(usize::MAX).max(2)))
    }

    /// As the annotation of a Job shows it: RFC 3339 in the zone.
    pub(super) fn show(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned(self.zone.clone());
        if zoned.offset().is_zero() {
            return zoned.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        }
        zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }
}

fn first_of_next_month(at: &Zoned) -> Option<Zoned> {
    let next = at.date().last_of_month().tomorrow().ok()?;
    DateTime::from_parts(next, jiff::civil::Time::midnight()).to_zoned(at.time_zone().clone()).ok()
}

fn parse_when(text: &str) -> Result<When, CronError> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other => match other.strip_prefix("@every ") {
            Some(every) => {
                let wrong = || CronError::Descriptor(other.to_owned());
                let every: SignedDuration = every.trim().parse().map_err(|_| wrong())?;
                let whole = SignedDuration::from_secs(every.as_secs().max(1));
                return if every.is_positive() { Ok(When::Every(whole)) } else { Err(wrong()) };
            }
            None if other.starts_with('@') => return Err(CronError::Descriptor(other.to_owned())),
            None => other,
        },
    };
    let parts: Vec<&str> = fields.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = parts.as_slice() else {
        return Err(CronError::Fields(parts.len(), fields.to_owned()));
    };
    let is_any = |field: &str| field.split(',').any(|part| part.starts_with(['*', '?']));
    Ok(When::Fields {
        minutes: field(minutes, 0, 59, &[])?,
        hours: field(hours, 0, 23, &[])?,
        days: field(days, 1, 31, &[])?,
        months: field(months, 1, 12, MONTHS)?,
        weekdays: {
            let set = field(weekdays, 0, 7, WEEKDAYS)?;
            // Sunday is 0 and 7.
            set | (set >> 7 & 1)
        },
        any_day: is_any(days) || is_any(weekdays),
    })
}

const MONTHS: &[&str] = &["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A field as a set of bits.
fn field(text: &str, first: u32, last: u32, names: &[&str]) -> Result<u64, CronError> {
    let mut set = 0;
    for part in text.split(',') {
        let wrong = || CronError::Part(part.to_owned());
        let number = |text: &str| -> Result<u32, CronError> {
            let lower = text.to_lowercase();
            let named = names.iter().position(|name| *name == lower && !name.is_empty());
            let value = match named {
                Some(at) => u32::try_from(at).map_err(|_| wrong())?,
                None => text.parse().map_err(|_| wrong())?,
            };
            if (first..=last).contains(&value) { Ok(value) } else { Err(wrong()) }
        };
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|step| *step > 0).ok_or_else(wrong)?)),
            None => (part, None),
        };
        let (from, to) = match range {
            "*" | "?" => (first, last),
            _ => match range.split_once('-') {
                Some((from, to)) => (number(from)?, number(to)?),
                // `5/10` begins there and goes to the end.
                None => (number(range)?, if step.is_some() { last } else { number(range)? }),
            },
        };
        if from > to {
            return Err(wrong());
        }
        let step = usize::try_from(step.unwrap_or(1)).map_err(|_| wrong())?;
        for value in (from..=to).step_by(step) {
            set |= 1u64 << value;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_next_time_is_found() {
        // C7.6
        for (schedule, zone, after, expected) in [
            ("*/15 * * * *", None, "2026-01-01T10:00:00Z", "2026-01-01T10:15:00Z"),
            ("*/15 * * * *", None, "2026-01-01T10:14:59Z", "2026-01-01T10:15:00Z"),
            ("0 0 29 2 *", None, "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("30 4 1,15 * 5", None, "2026-01-02T05:00:00Z", "2026-01-09T04:30:00Z"),
            ("30 4 13 * *", None, "2026-01-02T05:00:00Z", "2026-01-13T04:30:00Z"),
            ("0 9-17/4 * jan-MAR mon-fri", None, "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"),
            ("5/20 * * * 7", None, "2026-01-03T12:00:00Z", "2026-01-04T00:05:00Z"),
            ("@hourly", None, "2026-01-01T10:59:59Z", "2026-01-01T11:00:00Z"),
            ("@weekly", None, "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@every 90m", None, "2026-01-01T10:00:00Z", "2026-01-01T11:30:00Z"),
            ("0 9 * * *", Some("Europe/Berlin"), "2026-07-01T00:00:00Z", "2026-07-01T07:00:00Z"),
            ("TZ=Asia/Tokyo 0 9 * * *", None, "2026-07-01T00:30:00Z", "2026-07-02T00:00:00Z"),
            // An hour that a zone leaps over does not come that day.
            ("30 2 * * *", Some("Europe/Berlin"), "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
        ] {
            let parsed = Schedule::parse(schedule, zone).unwrap();
            assert_eq!(parsed.next(at(after)), Some(at(expected)), "{schedule} after {after}");
        }
        assert_eq!(Schedule::parse("0 0 30 2 *", None).unwrap().next(at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for wrong in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@soon",
            "@every -1h",
            "TZ=Moon/Sea * * * * *",
        ] {
            assert!(Schedule::parse(wrong, None).is_err(), "{wrong}");
        }
        assert!(Schedule::parse("* * * * *", Some("Moon/Sea")).is_err());
    }

    #[test]
    fn missed_times_are_counted_and_the_last_is_taken() {
        // C7.6
        let hourly = Schedule::parse("0 * * * *", None).unwrap();
        for (after, now, expected) in [
            ("2026-01-01T10:00:00Z", "2026-01-01T10:59:00Z", None),
            ("2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z", Some(("2026-01-01T11:00:00Z", 1))),
            ("2026-01-01T10:00:00Z", "2026-01-01T13:30:00Z", Some(("2026-01-01T13:00:00Z", 3))),
            ("2026-01-01T10:00:00Z", "2026-02-01T13:30:00Z", Some(("2026-02-01T13:00:00Z", 747))),
        ] {
            let expected = expected.map(|(text, count)| (at(text), count));
            assert_eq!(hourly.last(at(after), at(now)), expected, "{after} to {now}");
        }
        let berlin = Schedule::parse("0 * * * *", Some("Europe/Berlin")).unwrap();
        assert_eq!(berlin.show(at("2026-07-01T07:00:00Z")), "2026-07-01T09:00:00+02:00");
        assert_eq!(hourly.show(at("2026-07-01T07:00:00Z")), "2026-07-01T07:00:00Z");
    }
}
