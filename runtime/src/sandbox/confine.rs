//! Confinement of the worker: what it can no longer do once it runs.

use super::failure::{Failure, Status};
use super::mounts;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};
use std::collections::BTreeMap;

fn fail(what: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |e| Failure::os(Status::Internal, format_args!("cannot confine the worker: {what}"), e)
}

/// Takes file system, resources and privileges away. The caller is alone in namespaces of its own, with all capabilities
/// there. Files can only be written that were opened by others: the log, a capture, an image.
pub(crate) fn drop_privileges() -> Result<(), Failure> {
    mounts::empty_root()?;
    let files = getrlimit(Resource::Nofile).maximum;
    limit(Resource::Nofile, files)?;
    limit(Resource::Core, Some(0))?;
    // From here on being user 0 means nothing, also after an exec.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).map_err(fail("secure bits"))?;
    clear_ambient_capability_set().map_err(fail("ambient capabilities"))?;
    for n in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << n)) {
            Ok(()) => {}
            // The kernel has no capability of that number, nor above.
            Err(Errno::INVAL) => break,
            Err(e) => return Err(fail("bounding set")(e)),
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(fail("capabilities"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail("dumps"))?;
    set_no_new_privs(true).map_err(fail("no new privileges"))
}

fn limit(resource: Resource, n: Option<u64>) -> Result<(), Failure> {
    setrlimit(resource, Rlimit { current: n, maximum: n }).map_err(fail("limits"))
}

/// System calls that a running worker makes, whatever their arguments.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    // Frames, payload, events.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_recvfrom, libc::SYS_recvmsg,
    libc::SYS_recvmmsg, libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_close,
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_ppoll,
    libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime, libc::SYS_eventfd2,
    // Host sockets; socket() itself is filtered by its arguments.
    libc::SYS_connect, libc::SYS_bind, libc::SYS_accept4, libc::SYS_getsockname, libc::SYS_getpeername,
    libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_shutdown,
    // A capture's file.
    libc::SYS_lseek, libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_fstat,
    // Memory, time, entropy.
    libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk, libc::SYS_getrandom,
    // Memory that is shared with a virtual machine's monitor.
    libc::SYS_memfd_create, libc::SYS_ftruncate,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_clock_nanosleep, libc::SYS_nanosleep,
    // What the C library and threads need.
    libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_membarrier,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    libc::SYS_restart_syscall, libc::SYS_getpid, libc::SYS_gettid, libc::SYS_tgkill,
    libc::SYS_exit, libc::SYS_exit_group,
];

/// The same where old numbers still exist beside the new.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[libc::c_long] = &[];

/// What libraries try and can do without: refused, not fatal.
#[rustfmt::skip]
const REFUSED: &[libc::c_long] = &[
    libc::SYS_openat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_readlinkat, libc::SYS_getcwd, libc::SYS_faccessat,
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_sched_getaffinity, libc::SYS_prlimit64,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_OLD: &[libc::c_long] = &[libc::SYS_open, libc::SYS_stat, libc::SYS_readlink, libc::SYS_access];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OLD: &[libc::c_long] = &[];

/// For these there is an older call, whose arguments a filter can see: they are as if this kernel did not have them yet.
const MISSING: &[libc::c_long] = &[libc::SYS_clone3];

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

fn condition(arg: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)
}

/// The rules of what is allowed.
fn allowed() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules =
        [ALLOWED, ALLOWED_OLD, REFUSED, REFUSED_OLD, MISSING].concat().into_iter().map(|n| (n, Vec::new())).collect();
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let kinds = [
            (libc::SOCK_STREAM, 0),
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, 0),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            (libc::SOCK_DGRAM, if family == libc::AF_INET { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 }),
        ];
        for (kind, protocol) in kinds {
            sockets.push(SeccompRule::new(vec![
                condition(0, SeccompCmpOp::Eq, family as u64)?,
                // Without SOCK_CLOEXEC and SOCK_NONBLOCK.
                condition(1, SeccompCmpOp::MaskedEq(0xff), kind as u64)?,
                condition(2, SeccompCmpOp::Eq, protocol as u64)?,
            ])?);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    let no_exec = || SeccompRule::new(vec![condition(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    rules.insert(libc::SYS_mmap, vec![no_exec()?]);
    rules.insert(libc::SYS_mprotect, vec![no_exec()?]);
    // A thread, which is confined like this one: images are written and read by several.
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = libc::CLONE_THREAD as u32;
    let kinds = u64::from(thread | namespaces as u32);
    let is_thread = condition(0, SeccompCmpOp::MaskedEq(kinds), thread.into())?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
    let only = |values: &[u64]| {
        values.iter().map(|&v| SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, v)?])).collect::<Result<Vec<_>, _>>()
    };
    // The last is for memory that a virtual machine's monitor shares.
    let fcntl = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC, libc::F_ADD_SEALS];
    rules.insert(libc::SYS_fcntl, only(&fcntl.map(|c| c as u64))?);
    // Queue lengths; FIONBIO is how the standard library makes a socket non-blocking.
    let ioctl = [libc::TIOCOUTQ, libc::FIONREAD, SIOCOUTQNSD, libc::FIONBIO];
    rules.insert(libc::SYS_ioctl, only(&ioctl)?);
    Ok(rules)
}

/// Not in the `libc` crate: from `linux/sockios.h`.
const SIOCOUTQNSD: u64 = 0x894b;

/// The filters: what is not allowed kills the process, what is merely refused fails with `EACCES`, what is as if missing with `ENOSYS`.
/// The kernel takes the strictest of them.
fn filters() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let allow = SeccompFilter::new(allowed()?, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    let failing = |calls: Vec<libc::c_long>, errno: libc::c_int| {
        let rules: Rules = calls.into_iter().map(|n| (n, Vec::new())).collect();
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?.try_into()
    };
    let refuse = failing([REFUSED, REFUSED_OLD].concat(), libc::EACCES)?;
    Ok([refuse, failing(MISSING.to_vec(), libc::ENOSYS)?, allow.try_into()?])
}

/// Restricts all threads of the process to the system calls of a running worker, for good.
pub(crate) fn restrict_system_calls() -> Result<(), Failure> {
    let fail = |e: String| Failure::new(Status::Internal, format!("cannot confine the worker: system call filter: {e}"));
    for filter in filters().map_err(|e| fail(e.to_string()))? {
        apply_filter_all_threads(&filter).map_err(|e| fail(e.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `no_new_privs` and the filters themselves are tried on real processes in `tests/cli_confinement.rs`.
    #[test]
    fn filters_compile_and_fit_the_kernel() {
        for f in filters().unwrap() {
            assert!(f.len() < 4096, "{} instructions", f.len());
        }
    }
}
