//! Many messages of a socket in one call.

use super::check;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most messages per call.
pub const MAX: usize = 64;

/// A message that was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Number of bytes written.
    pub len: usize,
    /// The message was longer than its buffer and was cut.
    pub truncated: bool,
}

/// Receives up to `buffers.len()` messages (at most [`MAX`]) without waiting; the n-th goes to `memory[buffers[n]]`, what is known
/// of it to `out[n]`. Returns how many. An end of the stream is a message of length 0. Ranges outside of `memory` are `InvalidInput`.
pub fn recv(fd: BorrowedFd<'_>, memory: &mut [u8], buffers: &[Range<usize>], out: &mut [Message]) -> io::Result<usize> {
    let count = buffers.len().min(out.len()).min(MAX);
    // SAFETY: both are plain old data for which zero (null pointers, lengths zero) is a valid value.
    let (mut iovs, mut headers): ([libc::iovec; MAX], [libc::mmsghdr; MAX]) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    for ((iov, header), range) in iovs.iter_mut().zip(&mut headers).zip(&buffers[..count]) {
        let buffer = memory.get_mut(range.clone()).ok_or(io::ErrorKind::InvalidInput)?;
        *iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        header.msg_hdr.msg_iov = iov;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` headers point to `iovs`, which point into `memory`, all of them alive and borrowed exclusively during
    // the call; the kernel writes only bytes, within the lengths given. Overlapping ranges would mix up messages, nothing worse.
    let n = check(unsafe {
        libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _, std::ptr::null_mut())
    })?;
    let n = (n as usize).min(count);
    for (message, header) in out.iter_mut().zip(&headers[..n]) {
        let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        *message = Message { len: header.msg_len as usize, truncated };
    }
    Ok(n)
}

/// Sends messages (at most [`MAX`]), each made of two parts, without waiting. Returns how many were taken, at least one; the first that
/// was not can be asked for its error by sending it again.
pub fn send(fd: BorrowedFd<'_>, messages: &[[IoSlice<'_>; 2]]) -> io::Result<usize> {
    let count = messages.len().min(MAX);
    // SAFETY: plain old data for which zero (null pointers, lengths zero) is a valid value.
    let mut headers: [libc::mmsghdr; MAX] = unsafe { std::mem::zeroed() };
    for (header, parts) in headers.iter_mut().zip(&messages[..count]) {
        // `IoSlice` has the layout of `iovec` (documented by std); the kernel only reads through the pointer.
        header.msg_hdr.msg_iov = parts.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_iovlen = parts.len() as _;
    }
    // SAFETY: the first `count` headers point to slices that are borrowed, hence alive and initialised, during the call; the kernel
    // reads them and writes only `msg_len` in `headers`.
    let n = check(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    })?;
    Ok(n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn messages_go_to_their_buffers_and_cuts_are_told() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let parts: [[IoSlice<'_>; 2]; 3] = [
            [IoSlice::new(b"he"), IoSlice::new(b"ad")],
            [IoSlice::new(b""), IoSlice::new(b"")],
            [IoSlice::new(b"0123"), IoSlice::new(b"456789")],
        ];
        assert_eq!(send(a.as_fd(), &parts).unwrap(), 3);
        let mut memory = [0; 32];
        let mut out = [Message::default(); 4];
        let n = recv(b.as_fd(), &mut memory, &[20..24, 0..4, 8..16, 16..20], &mut out).unwrap();
        assert_eq!(n, 3);
        assert_eq!(out[0], Message { len: 4, truncated: false });
        assert_eq!(out[1], Message { len: 0, truncated: false });
        assert_eq!(out[2], Message { len: 8, truncated: true });
        assert_eq!((&memory[20..24], &memory[8..16]), (&b"head"[..], &b"01234567"[..]));
        let again = recv(b.as_fd(), &mut memory, &[0..4, 4..8], &mut out);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn ranges_outside_of_the_memory_are_refused() {
        let (_a, b) = UnixDatagram::pair().unwrap();
        let mut memory = [0; 8];
        let mut out = [Message::default(); 1];
        let r = recv(b.as_fd(), &mut memory, std::slice::from_ref(&(4..9)), &mut out);
        assert_eq!(r.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
