//! From the host's error numbers to the terms in which the guest is told.

use crate::sys::errqueue::{Origin, QueuedError};
use hibernet_netstack::edge::SockError;
use hibernet_netstack::wire::icmp::{self, IcmpError, IcmpQuote};
use std::io;

/// What an error means for a guest.
pub fn sock_error(e: &io::Error) -> SockError {
    match e.raw_os_error() {
        Some(n) => from_errno(n),
        None => SockError::Other(0),
    }
}

/// What an error number means for a guest.
pub fn from_errno(errno: i32) -> SockError {
    match errno {
        // ENOPROTOOPT is what TCP and UDP report for an ICMP "protocol unreachable".
        libc::ECONNREFUSED | libc::ENOPROTOOPT => SockError::Refused,
        libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE | libc::ENOTCONN => SockError::Reset,
        libc::ETIMEDOUT => SockError::TimedOut,
        libc::ENETUNREACH | libc::ENETDOWN => SockError::NetUnreachable,
        libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENONET => SockError::HostUnreachable,
        libc::EPERM | libc::EACCES => SockError::Prohibited,
        libc::EMSGSIZE => SockError::TooBig(None),
        // EAGAIN is what a connect or bind reports when no local port is left.
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC | libc::EAGAIN => SockError::NoResources,
        libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::EADDRINUSE => SockError::NotAvailable,
        n => SockError::Other(n),
    }
}

/// An error number that [`from_errno`] makes the same of.
pub(super) fn to_errno(e: SockError) -> i32 {
    match e {
        SockError::Refused => libc::ECONNREFUSED,
        SockError::Reset => libc::ECONNRESET,
        SockError::TimedOut => libc::ETIMEDOUT,
        SockError::NetUnreachable => libc::ENETUNREACH,
        SockError::HostUnreachable => libc::EHOSTUNREACH,
        SockError::Prohibited => libc::EACCES,
        SockError::TooBig(_) => libc::EMSGSIZE,
        SockError::NoResources => libc::ENOBUFS,
        SockError::NotAvailable => libc::EADDRNOTAVAIL,
        SockError::Other(n) => n,
    }
}

/// What a failed connect means. An IPv4 socket that was not bound has no address that could be wrong: there it means that
/// all local ports towards that destination are taken. `addressed`: it was bound, or is an IPv6 socket.
pub fn connect_error(e: &io::Error, addressed: bool) -> SockError {
    match e.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) if !addressed => SockError::NoResources,
        _ => sock_error(e),
    }
}

/// Whether an error returned by a call on a datagram socket is about an earlier datagram: an ICMP message that stands in the
/// error queue too. The call did nothing and can be repeated.
pub fn is_about_the_past(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EPROTO
                | libc::EOPNOTSUPP
                | libc::EACCES
                | libc::EMSGSIZE
        )
    )
}

/// A local error as the ICMP message that a router would have sent.
pub fn as_icmp(e: SockError, v6: bool) -> IcmpQuote {
    let kind = match e {
        SockError::Refused | SockError::Reset => IcmpError::PortUnreachable,
        SockError::NetUnreachable => IcmpError::NetUnreachable,
        SockError::Prohibited => IcmpError::Prohibited,
        SockError::TooBig(mtu) => IcmpError::TooBig(mtu.unwrap_or(if v6 { 1280 } else { 576 })),
        _ => IcmpError::HostUnreachable,
    };
    kind.quote(v6)
}

/// An entry of the error queue as an ICMP message of the socket's family.
pub fn queued_as_icmp(e: &QueuedError, v6: bool) -> IcmpQuote {
    match (e.origin, v6) {
        (Origin::Icmp, false) => {
            let rest = match (e.ty, e.code) {
                (icmp::v4::UNREACHABLE, icmp::v4::unreachable::FRAGMENTATION) => e.info & 0xffff,
                (icmp::v4::PARAMETER, _) => (e.info & 0xff) << 24,
                _ => 0,
            };
            IcmpQuote { ty: e.ty, code: e.code, rest }
        }
        (Origin::Icmp6, true) => {
            let rest = if matches!(e.ty, icmp::v6::TOO_BIG | icmp::v6::PARAMETER) { e.info } else { 0 };
            IcmpQuote { ty: e.ty, code: e.code, rest }
        }
        _ => match from_errno(e.errno) {
            SockError::TooBig(_) => as_icmp(SockError::TooBig(Some(e.info.min(65_535) as u16).filter(|m| *m > 0)), v6),
            other => as_icmp(other, v6),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_guests_see_as_different_things() {
        for (n, want) in [
            (libc::ECONNREFUSED, SockError::Refused),
            (libc::ECONNRESET, SockError::Reset),
            (libc::ETIMEDOUT, SockError::TimedOut),
            (libc::ENETUNREACH, SockError::NetUnreachable),
            (libc::EHOSTUNREACH, SockError::HostUnreachable),
            (libc::EACCES, SockError::Prohibited),
            (libc::EPERM, SockError::Prohibited),
            (libc::EMFILE, SockError::NoResources),
            (libc::ENFILE, SockError::NoResources),
            (libc::ENOBUFS, SockError::NoResources),
            (libc::ENOMEM, SockError::NoResources),
            (libc::EAFNOSUPPORT, SockError::NotAvailable),
            (libc::EMSGSIZE, SockError::TooBig(None)),
            (libc::EIO, SockError::Other(libc::EIO)),
        ] {
            assert_eq!(from_errno(n), want, "{n}");
        }
        let e = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        assert_eq!((connect_error(&e, false), connect_error(&e, true)), (SockError::NoResources, SockError::NotAvailable));
    }

    #[test]
    fn parameters_of_queued_icmp() {
        let mut e = QueuedError {
            errno: libc::EMSGSIZE,
            origin: Origin::Icmp,
            ty: 3,
            code: 4,
            info: 1400,
            offender: None,
            destination: None,
            len: 0,
        };
        assert_eq!(queued_as_icmp(&e, false), IcmpQuote { ty: 3, code: 4, rest: 1400 });
        (e.ty, e.code, e.info) = (12, 0, 5);
        assert_eq!(queued_as_icmp(&e, false).rest, 5 << 24);
        (e.origin, e.info) = (Origin::Local, 1300);
        assert_eq!(queued_as_icmp(&e, true), IcmpQuote { ty: 2, code: 0, rest: 1300 });
        (e.origin, e.errno) = (Origin::Local, libc::EHOSTUNREACH);
        assert_eq!(queued_as_icmp(&e, false), IcmpQuote { ty: 3, code: 1, rest: 0 });
    }
}
