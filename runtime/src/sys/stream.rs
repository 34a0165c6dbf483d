//! Reading a stream socket without taking, taking without reading, and writing from many places.

use super::check_len;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::VolatileSlice;

/// Most pieces of one `recvmsg` (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// Throws up to `n` bytes of received data away; returns how many. Stops early at an urgent mark.
pub fn discard(fd: BorrowedFd<'_>, n: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC, TCP drops the data instead of copying it (tcp(7)), so that the null pointer is never written to.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), std::ptr::null_mut(), n, libc::MSG_TRUNC | libc::MSG_DONTWAIT) })
}

/// Peeks at the bytes that stand `skip` after the first unread one, on a socket without a peek offset of its own: what lies
/// before them is copied to `scratch`, over and over. Returns how many bytes came into `out`, or `None` if there are not
/// even `skip`. At most 1023 times the length of `scratch` can be skipped.
pub fn peek_behind(fd: BorrowedFd<'_>, skip: usize, scratch: &mut [u8], out: &mut [u8]) -> io::Result<Option<usize>> {
    let pieces = if skip == 0 { 0 } else { skip.div_ceil(scratch.len().max(1)) };
    if pieces >= IOV_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut iov = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; IOV_MAX];
    let mut left = skip;
    for v in &mut iov[..pieces] {
        let len = left.min(scratch.len());
        *v = libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: len };
        left -= len;
    }
    iov[pieces] = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iov.as_mut_ptr();
    msg.msg_iovlen = (pieces + 1) as _;
    // SAFETY: every piece lies in `scratch` or `out`, both writable and alive during the call; that pieces overlap is of no
    // matter to the kernel, which writes one after the other.
    let n = check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut msg, libc::MSG_PEEK | libc::MSG_DONTWAIT) })?;
    Ok(n.checked_sub(skip))
}

/// Peeks into several buffers, one after the other: ranges of `memory`. Returns how many bytes that were. Ranges outside of it, or more than 64 of them, are
/// `InvalidInput`.
pub fn peek_into(fd: BorrowedFd<'_>, memory: &mut [u8], buffers: &[Range<usize>]) -> io::Result<usize> {
    let mut iovs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 64];
    let iovs = iovs.get_mut(..buffers.len()).ok_or(io::ErrorKind::InvalidInput)?;
    for (iov, range) in iovs.iter_mut().zip(buffers) {
        let buffer = memory.get_mut(range.clone()).ok_or(io::ErrorKind::InvalidInput)?;
        *iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    }
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iovs.as_mut_ptr();
    msg.msg_iovlen = iovs.len() as _;
    // SAFETY: the header points to `iovs`, which point into `memory`, borrowed exclusively during the call; the kernel writes only bytes, within
    // the lengths given. Overlapping ranges would mix them up, nothing worse.
    check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut msg, libc::MSG_PEEK | libc::MSG_DONTWAIT) })
}

/// Most places of one [`peek_to`].
const PLACES: usize = 64;

/// Peeks into memory that others change at any time, as a guest's: into the next 64 of `places`, one after the other. Returns how many bytes they take, and
/// how many came.
pub fn peek_to<'m>(fd: BorrowedFd<'_>, places: &mut dyn Iterator<Item = VolatileSlice<'m>>) -> io::Result<(usize, usize)> {
    let mut iovs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PLACES];
    // What a guard stands for is mapped as long as it lives.
    let mut guards = [const { None }; PLACES];
    let (mut count, mut asked) = (0, 0);
    for ((iov, guard), place) in iovs.iter_mut().zip(&mut guards).zip(places) {
        let guard = guard.insert(place.ptr_guard_mut());
        *iov = libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() };
        (count, asked) = (count + 1, asked + guard.len());
    }
    if count == 0 {
        return Ok((0, 0));
    }
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iovs.as_mut_ptr();
    msg.msg_iovlen = count as _;
    // SAFETY: a raw pointer is needed, since no slice may be made of memory that others change. The header points to `iovs`, which point to volatile slices
    // that are mapped for `'m`, which outlives this call, and whose guards live until it is over. The kernel writes within their lengths only, and through no
    // reference of Rust's; that others write there meanwhile mixes up bytes, nothing worse. What is not mapped after all is EFAULT.
    let n = check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut msg, libc::MSG_PEEK | libc::MSG_DONTWAIT) })?;
    Ok((asked, n))
}

/// Sends the pieces one after the other, without waiting and without a signal if nobody reads any more. Returns how many bytes were taken. Of more
/// than 1024 pieces the first are sent.
pub fn send_vectored(fd: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let pieces = &pieces[..pieces.len().min(IOV_MAX)];
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    // `IoSlice` has the layout of `iovec` (documented by std); the kernel only reads through the pointer.
    msg.msg_iov = pieces.as_ptr().cast_mut().cast();
    msg.msg_iovlen = pieces.len() as _;
    // SAFETY: the header points to slices that are borrowed, hence alive and initialised, during the call; nothing is written.
    check_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const msg, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// As [`send_vectored`], of pieces that others may change meanwhile: what the kernel copies is what is sent. Of more than 64 pieces the first are sent. One whose
/// file has become shorter is `EFAULT`.
pub fn send_shared<'m>(fd: BorrowedFd<'_>, pieces: impl Iterator<Item = VolatileSlice<'m>>) -> io::Result<usize> {
    let mut iovs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 64];
    let mut count = 0;
    for (iov, piece) in iovs.iter_mut().zip(pieces) {
        *iov = libc::iovec { iov_base: piece.ptr_guard().as_ptr().cast_mut().cast(), iov_len: piece.len() };
        count += 1;
    }
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iovs.as_mut_ptr();
    msg.msg_iovlen = count as _;
    // SAFETY: only a system call takes addresses of memory that others write to, of which there may be no reference to bytes. The first `count` pieces are
    // mapped during the call, since `'m` outlives it; the kernel reads them as it reads any memory of a process, and writes nothing.
    check_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const msg, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}
