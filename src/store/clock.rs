//! Can the host's clock be believed? What has a date is removed by it, for good, and a clock that
//! has jumped ahead must not do that.
//!
//! `clock.json` notes a time that was believed, and how long ago the host had booted then. In the
//! same boot it is known from that what the time has to be now, however long nothing has happened.
//! After another boot, or where nothing has been noted, the newest record of the store tells what
//! time it was at least.

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Store, atomic, plain};
use crate::model::Record;
use crate::sys::boot;

/// A clock that is further ahead than this is not believed.
const MOST: SignedDuration = SignedDuration::from_hours(24);
/// A note that is older than this is renewed, for the boot after this one.
const FRESH: SignedDuration = SignedDuration::from_hours(1);

/// A clock that is ahead of what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// What it says.
    pub now: Timestamp,
    /// What it should say, or what it should not be far ahead of.
    pub known: Timestamp,
    /// How that is known.
    pub by: Evidence,
}

/// What the clock is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The time that was noted in this boot of the host, and the time since then.
    Elapsed,
    /// The newest record.
    Record,
}

impl fmt::Display for Ahead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [now, known] = [self.now, self.known].map(|time| time.strftime("%Y-%m-%d %H:%M UTC"));
        write!(formatter, "the clock of this host may be wrong: it says {now}, ")?;
        match self.by {
            Evidence::Elapsed => {
                write!(
                    formatter,
                    "and from the time that has passed since the last look it is {known}"
                )
            }
            Evidence::Record => {
                write!(formatter, "and the newest record of the store is from {known}")
            }
        }
    }
}

/// What `clock.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The time.
    time: Timestamp,
    /// The boot of the host it was in.
    boot: String,
    /// How long ago that was then, in milliseconds.
    uptime_ms: u64,
    /// The clock was ahead afterwards, and nobody has said yet that it is right: records from then
    /// on prove nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    doubted: bool,
}

/// What is looked at, all at one moment.
#[derive(Debug, Clone)]
struct Look {
    now: Timestamp,
    boot: String,
    uptime: Duration,
}

impl Look {
    fn take() -> Self {
        Self {
            now: Timestamp::now(),
            boot: boot::id().unwrap_or_default(),
            uptime: boot::elapsed(),
        }
    }

    fn note(&self) -> Note {
        let uptime_ms = u64::try_from(self.uptime.as_millis()).unwrap_or(u64::MAX);
        Note { time: self.now, boot: self.boot.clone(), uptime_ms, doubted: false }
    }

    /// What it has to be now by `note`, if that is from this boot.
    fn expected(&self, note: &Note) -> Option<Timestamp> {
        let since = self.uptime.checked_sub(Duration::from_millis(note.uptime_ms))?;
        let is_ours = !self.boot.is_empty() && self.boot == note.boot;
        is_ours.then(|| note.time.saturating_add(since).unwrap_or(Timestamp::MAX))
    }

    /// Compares the clock with what is known.
    fn judge(
        &self,
        note: Option<&Note>,
        newest_record: impl FnOnce() -> Option<Timestamp>,
    ) -> Option<Ahead> {
        let (known, by) = match note.and_then(|note| self.expected(note)) {
            Some(expected) => (expected, Evidence::Elapsed),
            None => {
                let records =
                    if note.is_some_and(|note| note.doubted) { None } else { newest_record() };
                // What is from the future proves nothing.
                let past = |time: &Timestamp| *time <= self.now;
                let noted = note.map(|note| note.time).filter(past);
                (noted.max(records.filter(past))?, Evidence::Record)
            }
        };
        (self.now.duration_since(known) > MOST).then_some(Ahead { now: self.now, known, by })
    }

    /// What is to be noted after that, if anything.
    fn note_after(&self, note: Option<Note>, ahead: Option<Ahead>) -> Option<Note> {
        let Some(ahead) = ahead else {
            // A clock that has been set back, or is not right yet after a boot, is not one to go
            // by.
            let is_worth = note.is_none_or(|note| {
                let known = self.expected(&note).unwrap_or(note.time);
                self.now.duration_since(known) > -MOST
                    && (note.doubted
                        || note.boot != self.boot
                        || self.now.duration_since(note.time) > FRESH)
            });
            return is_worth.then(|| self.note());
        };
        match note {
            Some(note) if note.doubted => None,
            // With the boot it was in, so that the clock is believed again when it has been set
            // right.
            Some(note) if ahead.by == Evidence::Elapsed => Some(Note { doubted: true, ..note }),
            _ => Some(Note { time: ahead.known, boot: String::new(), uptime_ms: 0, doubted: true }),
        }
    }
}

impl Store {
    /// Is the clock more than a day ahead? Notes nothing.
    pub fn look_at_clock(&self) -> Option<Ahead> {
        Look::take().judge(self.clock_note().as_ref(), || self.newest_time())
    }

    /// The same, and notes what it finds. To be asked before something is written that would be a
    /// new record.
    pub fn check_clock(&self) -> Option<Ahead> {
        let (look, note) = (Look::take(), self.clock_note());
        let ahead = look.judge(note.as_ref(), || self.newest_time());
        if let Some(note) = look.note_after(note, ahead) {
            self.write_clock_note(&note);
        }
        ahead
    }

    /// The user says that the clock is right.
    pub fn trust_clock(&self) {
        self.write_clock_note(&Look::take().note());
    }

    fn clock_note(&self) -> Option<Note> {
        serde_json::from_slice(&plain::read_if_possible(&self.layout.clock())?).ok()
    }

    /// A store that cannot be written does without.
    fn write_clock_note(&self, note: &Note) {
        if let Ok(text) = serde_json::to_vec(note).map_err(drop)
            && self.layout.store_json().exists()
        {
            let _ = match note.doubted {
                true => atomic::write(&self.layout.clock(), &text),
                false => atomic::write_unflushed(&self.layout.clock(), &text),
            };
        }
    }

    /// The newest time that any record or entry of the trash says of itself, and that is not in the
    /// future.
    fn newest_time(&self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let records = self.records().unwrap_or_default();
        let trash =
            self.list_trash().unwrap_or_default().into_iter().filter_map(|found| found.entry.ok());
        let times = records
            .iter()
            .flat_map(|(_, record)| times(record))
            .chain(trash.map(|entry| entry.when));
        times.filter(|time| *time <= now).max()
    }
}

/// Every time at which something was made, by this record.
fn times(record: &Record) -> impl Iterator<Item = Timestamp> {
    let snapshots = record.snapshots.iter().map(|snapshot| snapshot.created);
    snapshots.chain([record.created]).chain(record.warm.as_ref().map(|warm| warm.made))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    /// What the clock says, and how long ago boot `boot` was, both in seconds.
    fn look(now: i64, boot: &str, uptime: u64) -> Look {
        Look { now: at(now), boot: boot.into(), uptime: Duration::from_secs(uptime) }
    }

    fn is_ahead(look: &Look, note: Option<&Note>, record: Option<i64>) -> bool {
        look.judge(note, || record.map(at)).is_some()
    }

    #[test]
    fn with_nothing_noted_the_newest_record_counts() {
        for (now, record, expected) in [
            (0, None, false),
            (0, Some(0), false),
            (DAY, Some(0), false),
            (DAY + 1, Some(0), true),
            (-DAY, Some(0), false),
        ] {
            assert_eq!(is_ahead(&look(now, "a", 5), None, record), expected, "{now} {record:?}");
        }
    }

    #[test]
    fn in_the_same_boot_an_idle_month_is_no_jump_and_a_jump_is_one_whatever_was_written_after_it() {
        let note = look(0, "a", 100).note();
        let month = 30 * DAY;
        assert!(!is_ahead(&look(month, "a", 100 + 30 * 24 * 3600), Some(&note), Some(0)));
        let jumped = look(month, "a", 200);
        let ahead = jumped.judge(Some(&note), || Some(at(month))).expect("a jump");
        assert_eq!((ahead.known, ahead.by), (at(100), Evidence::Elapsed));
    }

    #[test]
    fn what_was_doubted_stays_so_until_the_clock_is_right_or_believed() {
        let note = look(0, "a", 100).note();
        let jumped = look(30 * DAY, "a", 200);
        let ahead = jumped.judge(Some(&note), || None);
        let doubted = jumped.note_after(Some(note), ahead).expect("a note");
        // A record made meanwhile proves nothing; nor does a boot.
        for later in [look(30 * DAY + HOUR, "a", 200 + 3600), look(30 * DAY + HOUR, "b", 10)] {
            let again = later.judge(Some(&doubted), || Some(at(30 * DAY)));
            assert!(again.is_some());
            assert_eq!(
                later.note_after(Some(doubted.clone()), again),
                None,
                "the first note is the one that counts"
            );
        }
        // It was set right, three days later.
        let right = look(3 * DAY, "a", 100 + 3 * 24 * 3600);
        assert!(!is_ahead(&right, Some(&doubted), None));
        assert_eq!(right.note_after(Some(doubted), None), Some(right.note()));
    }

    #[test]
    fn after_a_boot_the_newest_of_note_and_record_counts() {
        let note = look(0, "a", 100).note();
        assert!(!is_ahead(&look(DAY - 1, "b", 10), Some(&note), None));
        assert!(is_ahead(&look(2 * DAY, "b", 10), Some(&note), Some(0)));
        assert!(!is_ahead(&look(2 * DAY, "b", 10), Some(&note), Some(DAY + 1)));
        // What is from the future proves nothing.
        assert!(is_ahead(&look(2 * DAY, "b", 10), Some(&note), Some(20 * DAY)));
    }

    #[test]
    fn a_clock_that_starts_behind_is_not_noted_and_setting_it_right_is_no_jump() {
        let note = look(0, "a", 100).note();
        let behind = look(-1000 * DAY, "b", 10);
        assert_eq!(behind.judge(Some(&note), || None), None);
        assert_eq!(behind.note_after(Some(note.clone()), None), None);
        assert!(!is_ahead(&look(HOUR, "b", 20), Some(&note), Some(0)));
    }

    #[test]
    fn a_note_is_renewed_by_the_hour_and_in_each_boot() {
        let note = look(0, "a", 100).note();
        for (look, renewed) in [
            (look(60, "a", 160), false),
            (look(2 * HOUR, "a", 100 + 7200), true),
            (look(60, "b", 10), true),
            (look(2 * HOUR, "a", 160), true),
        ] {
            assert_eq!(look.note_after(Some(note.clone()), None).is_some(), renewed, "{look:?}");
        }
    }

    #[test]
    fn a_note_with_any_times_is_judged_without_a_panic() {
        for time in [Timestamp::MIN, Timestamp::MAX, at(0)] {
            for uptime_ms in [0, u64::MAX] {
                let note = Note { time, boot: "a".into(), uptime_ms, doubted: false };
                let look = look(0, "a", u64::MAX / 2000);
                let ahead = look.judge(Some(&note), || Some(Timestamp::MAX));
                let _ = look.note_after(Some(note), ahead);
            }
        }
    }
}
