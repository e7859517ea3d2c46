//! Sizes and ages as people type and read them: binary units, `1G` is 1024³ bytes (as `qemu-img`
//! has it).

use std::time::Duration;

use crate::error::{Error, Result};

/// Bytes from text such as `512`, `64K`, `20G`, `1.5GiB`.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        Error::usage(format!("{text:?} is not a size"))
            .hint("a size is a number of bytes, or a number with K, M, G or T: 512M, 20G, 1.5T")
    };
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches("ib").trim_end_matches('b');
    let (digits, shift) = match number.chars().last() {
        Some('k') => (&number[..number.len() - 1], 10),
        Some('m') => (&number[..number.len() - 1], 20),
        Some('g') => (&number[..number.len() - 1], 30),
        Some('t') => (&number[..number.len() - 1], 40),
        _ => (number, 0),
    };
    let digits = digits.trim_end();
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_shl(shift).filter(|bytes| bytes >> shift == whole).ok_or_else(bad);
    }
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(bad());
    }
    let value: f64 = digits.parse().map_err(|_| bad())?;
    let bytes = value * (1u64 << shift) as f64;
    if bytes.fract() != 0.0 || bytes >= u64::MAX as f64 {
        return Err(bad());
    }
    Ok(bytes as u64)
}

/// Bytes for people: `412 MiB`, `3.1 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 9.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// How long ago, or for how long: `90s`, `30m`, `12h`, `7d`, `2w`, or `0`. Another number needs its
/// unit, because without one some readers would take it for days and others for seconds.
pub fn parse_age(text: &str) -> Result<Duration> {
    if text.parse::<u64>().is_ok_and(|number| number != 0) {
        return Err(Error::usage(format!(
            "{text:?} has no unit: write {text}s, {text}m, {text}h, {text}d or {text}w"
        )));
    }
    parse_duration(text)
}

fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || {
        Error::usage(format!(
            "{text:?} is not a time: write a number with s, m, h, d or w, as in 30m, 12h, 7d"
        ))
    };
    let (number, unit) = match text.chars().last() {
        Some('s') => (&text[..text.len() - 1], 1),
        Some('m') => (&text[..text.len() - 1], 60),
        Some('h') => (&text[..text.len() - 1], 3600),
        Some('d') => (&text[..text.len() - 1], 86400),
        Some('w') => (&text[..text.len() - 1], 7 * 86400),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)
}

/// A time that something may take: as [`parse_age`] has it, or a number of seconds, and not none at
/// all.
pub fn parse_time(text: &str) -> Result<Duration> {
    match parse_duration(text)? {
        Duration::ZERO => Err(Error::usage("no time at all is too little")),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_exact() {
        for (text, bytes) in [
            ("512", 512),
            ("64K", 65536),
            ("1G", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("20 g", 20 << 30),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text).expect(text), bytes, "{text}");
        }
        for bad in ["", "G", "1X", "-1", "1e9", "NaN", "inf", "0.3", "99999999999T", "1,5G"] {
            assert!(parse_size(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_age_has_a_unit_and_a_time_limit_need_not() {
        for (text, seconds) in
            [("0", 0), ("0s", 0), ("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604_800)]
        {
            assert_eq!(parse_age(text).expect(text).as_secs(), seconds, "{text}");
        }
        for bad in
            ["1", "7", "-1", "", "d", "7y", "1.5h", "99999999999999999999", "99999999999999999w"]
        {
            assert!(parse_age(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(parse_time("7").expect("seconds").as_secs(), 7);
        assert!(parse_time("0").is_err());
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (432 << 20, "432 MiB"),
            (3 << 29, "1.5 GiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
