//! Times for people and for scripts, always in UTC, and durations in words.

use std::time::Duration;

use jiff::Timestamp;

/// `2026-11-21 14:03`, in UTC.
pub(crate) fn minute(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Milliseconds with microsecond precision, for JSON.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// `12 ms`, `1.4 s`.
pub(crate) fn short(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// How long until then: `in 58 min`, `in 7 h`, `in 3 d`, `over`.
pub(crate) fn left(time: Timestamp) -> String {
    match time.duration_since(Timestamp::now()).as_secs() {
        ..1 => "over".to_owned(),
        seconds @ 1..7200 => format!("in {} min", (seconds + 59) / 60),
        seconds @ 7200..172_800 => format!("in {} h", seconds / 3600),
        seconds => format!("in {} d", seconds / 86_400),
    }
}
