//! Socket addresses in the kernel's form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// An IPv4 or IPv6 socket address as the kernel reads and writes it.
#[derive(Clone, Copy)]
pub struct SockAddr {
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

impl std::fmt::Debug for SockAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

/// `sockaddr_in` is the smaller and no stricter aligned one, so that either fits into the place of a `sockaddr_in6`.
const _: () = assert!(
    size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>()
        && align_of::<libc::sockaddr_in>() <= align_of::<libc::sockaddr_in6>()
);

impl SockAddr {
    /// Room for an address that the kernel is to write.
    pub const fn empty() -> Self {
        SockAddr {
            storage: libc::sockaddr_in6 {
                sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
                sin6_scope_id: 0,
            },
            len: size_of::<libc::sockaddr_in6>() as libc::socklen_t,
        }
    }

    /// The address, or `None` if it is of another family or was not written.
    pub fn get(&self) -> Option<SocketAddr> {
        let len = self.len as usize;
        match i32::from(self.storage.sin6_family) {
            libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: `storage` is at least as large and aligned as `sockaddr_in` (asserted above), all its bytes are
                // initialised, and every bit pattern is a valid `sockaddr_in`.
                let a = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(a.sin_port))))
            }
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                let a = &self.storage;
                let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), 0, a.sin6_scope_id)))
            }
            _ => None,
        }
    }

    /// For a call that reads the address.
    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// For a call that writes the address; its length goes to [`SockAddr::len_mut`] or [`SockAddr::set_len`].
    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    /// Length of the address, or of the room for it.
    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// Both pointers for a call that writes an address.
    pub(crate) fn parts_mut(&mut self) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        let len = &raw mut self.len;
        (self.as_mut_ptr(), len)
    }

    /// Takes over the length that a call has reported.
    pub(crate) fn set_len(&mut self, len: libc::socklen_t) {
        self.len = len;
    }
}

impl From<SocketAddr> for SockAddr {
    fn from(a: SocketAddr) -> Self {
        let mut out = SockAddr::empty();
        match a {
            SocketAddr::V4(a) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*a.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: the place is large and aligned enough (asserted above), and ours alone.
                unsafe { out.as_mut_ptr().cast::<libc::sockaddr_in>().write(v4) };
                out.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(a) => {
                out.storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                out.storage.sin6_port = a.port().to_be();
                out.storage.sin6_addr.s6_addr = a.ip().octets();
                out.storage.sin6_scope_id = a.scope_id();
            }
        }
        out
    }
}

/// The "any" address of the family of `of`.
pub fn unspecified(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for text in ["192.0.2.7:65535", "[2001:db8::5]:1", "[fe80::1%3]:9", "0.0.0.0:0"] {
            let a: SocketAddr = text.parse().unwrap();
            assert_eq!(SockAddr::from(a).get(), Some(a));
        }
        assert_eq!(SockAddr::empty().get(), None);
    }
}
