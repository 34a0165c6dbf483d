//! What LOG rules say, in the log: no faster than somebody could read it.

use hibernet_netstack::Time;
use slog::Logger;
use std::time::Duration;

/// Lines that may come at once.
const BURST: u32 = 256;
/// Afterwards one for each of these.
const EVERY: Duration = Duration::from_millis(10);

/// Writes lines of LOG rules, and counts what it leaves out.
#[derive(Debug)]
pub(super) struct RuleLog {
    log: Logger,
    /// Lines that may be written now, as of `counted`.
    allowed: u32,
    counted: Time,
    left_out: u64,
}

impl RuleLog {
    pub(super) fn new(log: &Logger) -> Self {
        RuleLog { log: log.new(slog::o!("target" => "nf")), allowed: BURST, counted: Time::ZERO, left_out: 0 }
    }

    /// Lines that came, and how many more there were that are lost.
    pub(super) fn write(&mut self, now: Time, lines: &[String], lost: u64) {
        if lines.is_empty() && lost == 0 {
            return;
        }
        let new = now.since(self.counted).as_nanos() / EVERY.as_nanos();
        if new > 0 {
            self.allowed = self.allowed.saturating_add(u32::try_from(new).unwrap_or(u32::MAX)).min(BURST);
            self.counted = now;
        }
        self.left_out += lost;
        for line in lines {
            if self.allowed == 0 {
                self.left_out += 1;
                continue;
            }
            self.allowed -= 1;
            if self.left_out > 0 {
                slog::info!(self.log, "lines of LOG rules were left out"; "lines" => std::mem::take(&mut self.left_out));
            }
            // The kernel's line ends in a blank.
            slog::info!(self.log, "{}", line.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slog::Drain;
    use std::sync::{Arc, Mutex};

    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Drain for Kept {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, r: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
            self.0.lock().unwrap().push(r.msg().to_string());
            Ok(())
        }
    }

    #[test]
    fn a_flood_is_thinned_and_counted() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut log = RuleLog::new(&Logger::root(Kept(kept.clone()), slog::o!()));
        let lines = |n: usize| (0..n).map(|i| format!("refused: {i}")).collect::<Vec<_>>();
        let now = Time::ZERO + Duration::from_secs(100);
        log.write(now, &lines(2), 0);
        assert_eq!(*kept.lock().unwrap(), ["refused: 0", "refused: 1"]);
        log.write(now, &lines(1000), 5);
        assert_eq!(kept.lock().unwrap().len(), 256 + 1);
        log.write(now + Duration::from_millis(25), &lines(10), 0);
        let kept = kept.lock().unwrap();
        // Two more, after the news of those that were not written.
        assert_eq!(kept[257..], ["lines of LOG rules were left out".to_owned(), "refused: 0".into(), "refused: 1".into()]);
    }
}
