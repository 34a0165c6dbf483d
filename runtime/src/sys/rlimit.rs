//! Limits of the process.

use super::check;
use std::io;

/// Soft and hard limit of open descriptors.
pub fn open_files() -> io::Result<(u64, u64)> {
    let mut l = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to `l`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut l) })?;
    Ok((l.rlim_cur, l.rlim_max))
}

/// Sets the soft limit of open descriptors, up to the hard one.
pub fn set_open_files(soft: u64) -> io::Result<()> {
    let (_, hard) = open_files()?;
    let l = libc::rlimit { rlim_cur: soft.min(hard), rlim_max: hard };
    // SAFETY: the kernel reads one `rlimit` from `l`.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const l) }).map(drop)
}
