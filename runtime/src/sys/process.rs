//! Processes and signals: what the standard library and rustix do not offer safely.

use super::check;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// Result of [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// In the parent: the child's process id.
    Parent(rustix::process::Pid),
    /// In the child.
    Child,
}

/// Makes a child process that goes on here, in new namespaces as `flags` (`CLONE_NEW*`) say.
///
/// # Errors
///
/// What clone(2) says; `InvalidInput` if the process has more than one thread, since the child would inherit
/// their locks in whatever state they are.
pub fn fork(flags: libc::c_int) -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "fork with threads running"));
    }
    let none: libc::c_ulong = 0;
    // SAFETY: clone without CLONE_VM and without a stack copies the process, as fork does. There is one thread, so no
    // lock of the C library or the allocator is held by somebody who is not copied. All arguments but the flags are null.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, libc::c_ulong::from((flags | libc::SIGCHLD) as u32), none, none, none, none) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(rustix::process::Pid::from_raw(pid as i32).ok_or(io::ErrorKind::Other)?)),
    }
}

/// Ends the process without running anything that was registered for its end.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// Moves the calling process into new namespaces (`CLONE_NEW*`).
///
/// # Errors
///
/// What unshare(2) says.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: only namespace flags are passed (checked), so no memory or descriptor table stops being shared.
    check(unsafe { libc::unshare(flags & NAMESPACES) }).map(drop)
}

const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWCGROUP;

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalSet")
    }
}

impl SignalSet {
    /// The set of these signals. Numbers that are none are left out.
    pub fn new(signals: &[libc::c_int]) -> Self {
        // SAFETY: an all-zero sigset_t is a valid value, and the functions write only to it.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for &s in signals {
                libc::sigaddset(&mut set, s);
            }
            SignalSet(set)
        }
    }

    /// Blocks these signals too; returns the mask that was in force.
    ///
    /// # Errors
    ///
    /// What sigprocmask(2) says.
    pub fn block(&self) -> io::Result<SignalSet> {
        self.mask(libc::SIG_BLOCK)
    }

    /// Makes this the mask; returns the one that was in force.
    ///
    /// # Errors
    ///
    /// What sigprocmask(2) says.
    pub fn set(&self) -> io::Result<SignalSet> {
        self.mask(libc::SIG_SETMASK)
    }

    fn mask(&self, how: libc::c_int) -> io::Result<SignalSet> {
        let mut old = SignalSet::new(&[]);
        // SAFETY: both pointers are to valid sets that outlive the call.
        check(unsafe { libc::sigprocmask(how, &self.0, &mut old.0) })?;
        Ok(old)
    }
}

/// Sets a signal to its default action. For the child that runs a command: what the Rust run-time ignores (SIGPIPE) would
/// stay ignored.
///
/// # Errors
///
/// For a number that is no signal.
pub fn default_action(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: SIG_DFL installs no code of ours.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Signals as they come, from a descriptor.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// A signal received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its number.
    pub signal: libc::c_int,
    /// Sent by the kernel (a terminal's interrupt key, for one), not by a process.
    pub from_kernel: bool,
}

impl SignalFd {
    /// A descriptor for these signals, which must be blocked. Non-blocking.
    ///
    /// # Errors
    ///
    /// What signalfd(2) says.
    pub fn new(set: &SignalSet) -> io::Result<Self> {
        // SAFETY: the set is valid for the call; -1 asks for a new descriptor, which is owned by nobody else.
        unsafe {
            let fd = check(libc::signalfd(-1, &set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
            Ok(SignalFd(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next signal, if one is pending.
    ///
    /// # Errors
    ///
    /// What read(2) says, other than that nothing is pending.
    pub fn next(&self) -> io::Result<Option<Received>> {
        let mut buf = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut buf) {
            Ok(n) if n == buf.len() => {
                // SAFETY: the kernel filled the whole structure, which consists of integers only.
                let info: libc::signalfd_siginfo = unsafe { std::ptr::read_unaligned(buf.as_ptr().cast()) };
                Ok(Some(Received { signal: info.ssi_signo as i32, from_kernel: info.ssi_code > 0 }))
            }
            Ok(_) => Ok(None),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends a signal by number to a process that is surely still ours to name (a child not yet waited for).
///
/// # Errors
///
/// What kill(2) says.
pub fn kill(pid: rustix::process::Pid, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill takes no pointers.
    check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }).map(drop)
}

/// Closes every descriptor from 3 on that is not in `keep`. What owned them must not be used, nor dropped, after.
///
/// # Errors
///
/// What close_range(2) says.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the caller of `close_all_but` gives up these descriptors. No pointers are passed.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Lets a descriptor stay open over execve(2).
///
/// # Errors
///
/// What fcntl(2) says.
pub fn keep_over_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
}

/// Takes ownership of an inherited descriptor that was named on the command line.
///
/// # Errors
///
/// If no such descriptor is open, or it is one of the standard ones.
pub fn inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl takes no pointers here and fails for a number that is not open.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: it is open, was inherited, and each is taken once by the one command line there is; nothing in this
    // process knows its number from elsewhere.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    debug_assert!(fd.as_raw_fd() > 2);
    Ok(fd)
}

/// Replaces the process by a program, looked up as execvp(3) does. Returns only on failure.
pub fn exec(argv: &[impl AsRef<OsStr>]) -> io::Error {
    let Ok(args) = argv.iter().map(|a| CString::new(a.as_ref().as_bytes())).collect::<Result<Vec<_>, _>>() else {
        return io::ErrorKind::InvalidInput.into();
    };
    let Some(program) = args.first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    let mut pointers: Vec<*const libc::c_char> = args.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: `program` and every element are NUL-terminated and live until the call returns; the array ends with null.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the process by the program in an open file, with an empty environment. Returns only on failure.
pub fn exec_file(file: BorrowedFd<'_>, argv: &[impl AsRef<OsStr>]) -> io::Error {
    let Ok(args) = argv.iter().map(|a| CString::new(a.as_ref().as_bytes())).collect::<Result<Vec<_>, _>>() else {
        return io::ErrorKind::InvalidInput.into();
    };
    let mut pointers: Vec<*const libc::c_char> = args.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: every element of `pointers` is NUL-terminated and lives until the call returns; both arrays end with null, and so
    // does the empty path, with which the file itself is meant.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// The user namespace that a namespace belongs to.
///
/// # Errors
///
/// `EPERM` if that is none of the caller's or below.
pub fn owner_of_namespace(ns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// Not in the `libc` crate: from `linux/nsfs.h`.
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this request takes no argument and returns a new descriptor.
    let fd = check(unsafe { libc::ioctl(ns.as_raw_fd(), NS_GET_USERNS) })?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
