//! Dates of snapshots, in the local time that `TZ` gives; without one, and where the system has no other
//! source (as inside a sandbox), that is UTC.

/// "2026-11-21 06:33:40" for seconds since 1970.
pub fn format(seconds: i64) -> String {
    let local = seconds.saturating_add(offset(seconds));
    let days = local.div_euclid(86_400);
    let second = local.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Days since 1970-01-01 to year, month, day (proleptic Gregorian): counts in eras of 400 years that begin
/// on 1 March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Seconds to add to UTC at that time: by the rules of a zone file, which only a system outside of a sandbox
/// has, or of a `TZ` in the fixed form "UTC0", "CET-1", "<+0530>-5:30".
fn offset(seconds: i64) -> i64 {
    let zone = std::env::var("TZ").ok();
    let path = match zone.as_deref().map(|zone| zone.trim_start_matches(':')) {
        None => "/etc/localtime".to_owned(),
        Some(zone) if zone.starts_with('/') => zone.to_owned(),
        Some(zone) => format!("/usr/share/zoneinfo/{zone}"),
    };
    let from_file = std::fs::read(path)
        .ok()
        .and_then(|file| file_offset(&file, seconds));
    from_file.or_else(|| fixed_zone(&zone?)).unwrap_or(0)
}

/// The offset that a zone file (RFC 8536) gives for that time. Past its last change the last rule is kept.
fn file_offset(file: &[u8], seconds: i64) -> Option<i64> {
    const HEADER: usize = 44;
    let number =
        |at: usize| Some(u32::from_be_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    let counts = |header: usize| -> Option<[usize; 6]> {
        let mut counts = [0; 6];
        for (index, count) in counts.iter_mut().enumerate() {
            *count = number(header + 20 + index * 4)?;
        }
        Some(counts)
    };
    if !file.starts_with(b"TZif") || *file.get(4)? < b'2' {
        return None;
    }
    // The first block has times of 32 bits; the second one repeats it with 64.
    let [is_utc, is_std, leaps, times, types, letters] = counts(0)?;
    let second = HEADER + times * 5 + types * 6 + letters + leaps * 8 + is_std + is_utc;
    let [_, _, _, times, types, _] = counts(second)?;
    let at = second + HEADER;
    let time = |index: usize| -> Option<i64> {
        Some(i64::from_be_bytes(
            file.get(at + index * 8..at + index * 8 + 8)?
                .try_into()
                .ok()?,
        ))
    };
    let mut rule = 0;
    for index in 0..times {
        if time(index)? > seconds {
            break;
        }
        rule = usize::from(*file.get(at + times * 8 + index)?);
    }
    if rule >= types {
        return None;
    }
    let entry = at + times * 9 + rule * 6;
    Some(i64::from(i32::from_be_bytes(
        file.get(entry..entry + 4)?.try_into().ok()?,
    )))
}

fn fixed_zone(zone: &str) -> Option<i64> {
    let rest = match zone.strip_prefix('<') {
        Some(quoted) => quoted.split_once('>')?.1,
        None => zone.trim_start_matches(|c: char| c.is_ascii_alphabetic()),
    };
    let (sign, rest) = match rest.strip_prefix('-') {
        // POSIX counts westwards.
        Some(east) => (1, east),
        None => (-1, rest.strip_prefix('+').unwrap_or(rest)),
    };
    let mut seconds = 0;
    let mut unit = 3600;
    for part in rest.split(':') {
        seconds += part
            .parse::<i64>()
            .ok()
            .filter(|part| (0..60).contains(part))?
            * unit;
        unit /= 60;
    }
    Some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    // `date -u -d @N '+%F %T'`
    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
        assert_eq!(civil(47_540), (2100, 2, 28));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }

    #[test]
    fn zones_of_a_fixed_offset() {
        assert_eq!(fixed_zone("UTC0"), Some(0));
        assert_eq!(fixed_zone("CET-1"), Some(3600));
        assert_eq!(fixed_zone("EST5"), Some(-5 * 3600));
        assert_eq!(fixed_zone("<+0530>-5:30"), Some(5 * 3600 + 1800));
        assert_eq!(fixed_zone("Europe/Berlin"), None);
    }
}
