//! Ending what is left of a sandbox when its command has ended: every process in its network namespace.

use super::namespaces;
use crate::sys::event::is_readable;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long they have between being asked and being killed.
const GRACE: Duration = Duration::from_secs(2);
/// How long killing is tried: processes that fork faster than they are found would go on for ever.
const KILLING: Duration = Duration::from_secs(5);

/// Ends all processes in the network namespace. `reap` is called whenever some have ended. Returns how many were found.
pub(crate) fn end_all(net: &OwnedFd, mut reap: impl FnMut()) -> usize {
    let Ok(wanted) = namespaces::identity_of(net) else { return 0 };
    let found = members(wanted);
    let count = found.len();
    if found.is_empty() {
        return 0;
    }
    for p in &found {
        let _ = pidfd_send_signal(p, Signal::TERM);
        // One that is stopped would not notice.
        let _ = pidfd_send_signal(p, Signal::CONT);
    }
    wait_for(found, GRACE);
    reap();
    let deadline = Instant::now() + KILLING;
    loop {
        let left = members(wanted);
        if left.is_empty() || Instant::now() >= deadline {
            reap();
            return count;
        }
        for p in &left {
            let _ = pidfd_send_signal(p, Signal::KILL);
        }
        wait_for(left, Duration::from_millis(200));
        reap();
    }
}

/// Waits until all have ended, or the time is over.
fn wait_for(mut left: Vec<OwnedFd>, time: Duration) {
    let deadline = Instant::now() + time;
    while let Some(p) = left.pop() {
        let rest = deadline.saturating_duration_since(Instant::now());
        let rest = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&p, PollFlags::IN)], Some(&rest));
    }
}

/// Handles of the processes in a network namespace. A handle cannot come to mean another process.
fn members(wanted: u64) -> Vec<OwnedFd> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    pids.filter(|&p| is_member(p, wanted))
        .filter_map(|p| pidfd_open(p, PidfdFlags::empty()).ok().filter(|_| is_member(p, wanted)))
        .filter(|p| !is_readable(p))
        .collect()
}

fn is_member(pid: Pid, wanted: u64) -> bool {
    rustix::fs::stat(format!("/proc/{}/ns/net", pid.as_raw_nonzero())).is_ok_and(|s| s.st_ino == wanted)
}
