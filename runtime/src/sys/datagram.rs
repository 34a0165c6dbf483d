//! Sending and receiving several datagrams with one call.

use super::addr::SockAddr;
use super::cmsg::{Control, Meta};
use super::{check, check_len};
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most datagrams of one call.
pub const BATCH: usize = 64;
/// Most datagrams that one call receives.
pub const RECV_BATCH: usize = 16;

const NO_PIECE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn message(name: Option<&SockAddr>, control: &Control) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut m: libc::msghdr = unsafe { mem::zeroed() };
    if let Some(a) = name {
        m.msg_name = a.as_ptr().cast_mut().cast();
        m.msg_namelen = a.len();
    }
    let (ptr, len) = control.parts();
    if len > 0 {
        m.msg_control = ptr.cast_mut();
        m.msg_controllen = len as _;
    }
    m
}

/// Sends one message made of up to [`BATCH`] pieces; more are not sent. With [`Control::push_segment`], each piece but the last must have
/// the length of a segment, and each becomes a datagram.
pub fn send_pieces(fd: BorrowedFd<'_>, pieces: &[&[u8]], to: Option<&SockAddr>, control: &Control) -> io::Result<usize> {
    let mut iov = [NO_PIECE; BATCH];
    let n = pieces.len().min(BATCH);
    for (v, p) in iov.iter_mut().zip(pieces) {
        *v = libc::iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() };
    }
    let mut m = message(to, control);
    m.msg_iov = iov.as_mut_ptr();
    m.msg_iovlen = n as _;
    // SAFETY: `m` points to `n` pieces, an address and control messages that all outlive the call, which only reads them.
    check_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const m, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
}

/// Sends up to [`BATCH`] datagrams, each with the same address and control messages. Returns how many the kernel took; an
/// error is about the first.
pub fn send_each(fd: BorrowedFd<'_>, datagrams: &[&[u8]], to: Option<&SockAddr>, control: &Control) -> io::Result<usize> {
    let n = datagrams.len().min(BATCH);
    let mut iov = [NO_PIECE; BATCH];
    let mut msgs = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    for ((v, m), d) in iov.iter_mut().zip(&mut msgs).zip(datagrams) {
        *v = libc::iovec { iov_base: d.as_ptr().cast_mut().cast(), iov_len: d.len() };
        let mut h = message(to, control);
        h.msg_iov = v;
        h.msg_iovlen = 1;
        m.write(libc::mmsghdr { msg_hdr: h, msg_len: 0 });
    }
    // SAFETY: the first `n` headers were written above; what they point to outlives the call and is only read. Only their
    // `msg_len` is written.
    let sent = check(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            msgs.as_mut_ptr().cast(),
            n as libc::c_uint,
            (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as _,
        )
    })?;
    Ok(sent as usize)
}

/// A datagram that was received.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Its length, at most that of its place.
    pub len: usize,
    /// It was longer than its place.
    pub truncated: bool,
    /// Sender, if the protocol has one.
    pub from: Option<SocketAddr>,
    /// What the kernel says of it.
    pub meta: Meta,
}

/// Receives up to [`RECV_BATCH`] datagrams, each into one of the `slots` of `memory`: slot `n` starts at `n * slot_size`. Calls `each`
/// with the position in `slots`. Slots that do not lie in `memory` end the list. Returns how many came; an error is about the first.
pub fn receive_slots(
    fd: BorrowedFd<'_>,
    memory: &mut [u8],
    slot_size: usize,
    slots: &[u32],
    mut each: impl FnMut(usize, Arrived),
) -> io::Result<usize> {
    let mut iov = [NO_PIECE; RECV_BATCH];
    let mut names = [const { SockAddr::empty() }; RECV_BATCH];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; RECV_BATCH];
    let mut msgs = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; RECV_BATCH];
    let mut n = 0;
    for &slot in slots.iter().take(RECV_BATCH) {
        let start = slot as usize * slot_size;
        let Some(b) = memory.get_mut(start..start + slot_size) else { break };
        iov[n] = libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
        let (control, room) = controls[n].write(Control::default()).room_mut();
        // SAFETY: `msghdr` is plain data for which all zeroes are valid.
        let mut h: libc::msghdr = unsafe { mem::zeroed() };
        h.msg_name = names[n].as_mut_ptr().cast();
        h.msg_namelen = names[n].len();
        h.msg_control = control;
        h.msg_controllen = room as _;
        h.msg_iov = &raw mut iov[n];
        h.msg_iovlen = 1;
        msgs[n].write(libc::mmsghdr { msg_hdr: h, msg_len: 0 });
        n += 1;
    }
    if n == 0 {
        return Ok(0);
    }
    // SAFETY: the first `n` headers were written above. Each points to a piece within `memory`, which is borrowed exclusively, and to
    // an address and a control buffer of its own with their true sizes; all outlive the call.
    let got = check(unsafe {
        libc::recvmmsg(fd.as_raw_fd(), msgs.as_mut_ptr().cast(), n as libc::c_uint, libc::MSG_DONTWAIT as _, std::ptr::null_mut())
    })? as usize;
    for i in 0..got.min(n) {
        // SAFETY: headers and control buffers up to `n` were initialised above.
        let (m, control) = unsafe { (msgs[i].assume_init_ref(), controls[i].assume_init_mut()) };
        control.set_len(m.msg_hdr.msg_controllen as _);
        names[i].set_len(m.msg_hdr.msg_namelen);
        each(
            i,
            Arrived {
                len: m.msg_len as usize,
                truncated: m.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                from: names[i].get(),
                meta: control.meta(),
            },
        );
    }
    Ok(got)
}
