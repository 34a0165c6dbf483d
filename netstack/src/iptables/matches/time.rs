//! `time`: when packets fit, by the wall clock.

use crate::iptables::TimeMatch;

const DAY: u32 = TimeMatch::LAST_SECOND + 1;

/// Whether it is time, `now` seconds after the start of 1970.
pub(super) fn time(m: &TimeMatch, now: u64) -> bool {
    let Ok(mut now) = u32::try_from(now) else { return false };
    if now < m.dates.0 || now > m.dates.1 {
        return false;
    }
    let second = now % DAY;
    if m.day.0 < m.day.1 {
        if second < m.day.0 || second > m.day.1 {
            return false;
        }
    } else {
        if second < m.day.0 && second > m.day.1 {
            return false;
        }
        // After midnight it is the day before that counts.
        if m.contiguous && second <= m.day.1 {
            now = now.saturating_sub(DAY);
        }
    }
    let days = now / DAY;
    // 1970 began on a Thursday.
    let weekday = (days + 3) % 7 + 1;
    m.weekdays >> weekday & 1 != 0 && m.monthdays >> day_of_month(days) & 1 != 0
}

/// The day of the month, from 1, so many days after the start of 1970: days are counted from a March on, so that a leap day is the last of its
/// year, and in eras of 400 years.
fn day_of_month(days: u32) -> u32 {
    const ERA: u32 = 146_097;
    // From the 1st of March of the year 0.
    let of_era = (days + 719_468) % ERA;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    of_year - (153 * month + 2) / 5 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_months_are_right() {
        // 1970-01-01, 1970-12-31, 2000-02-29, 2000-03-01, 2024-02-29, 2026-11-27, 2038-01-19, 2100-02-28, 2100-03-01.
        for (days, want) in
            [(0, 1), (364, 31), (11_016, 29), (11_017, 1), (19_782, 29), (20_784, 27), (24_855, 19), (47_540, 28), (47_541, 1)]
        {
            assert_eq!(day_of_month(days), want, "{days}");
        }
    }

    #[test]
    fn hours_over_midnight_belong_to_the_day_before_if_asked() {
        // Friday from 22:00 to 4:00.
        let m = TimeMatch { day: (79_200, 14_400), weekdays: 1 << 5, ..TimeMatch::ALWAYS };
        let friday = 20_784 * 86_400u64;
        let hour = |h: u64| friday + h * 3_600;
        assert!(time(&m, hour(23)) && time(&m, hour(3)) && !time(&m, hour(12)) && !time(&m, hour(27)));
        let m = TimeMatch { contiguous: true, ..m };
        assert!(time(&m, hour(23)) && !time(&m, hour(3)) && !time(&m, hour(12)) && time(&m, hour(27)));
        assert!(!time(&TimeMatch { dates: (0, 5), ..TimeMatch::ALWAYS }, 6) && time(&TimeMatch::ALWAYS, 6));
    }
}
