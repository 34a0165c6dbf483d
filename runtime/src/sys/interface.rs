//! Network interfaces of the current network namespace, by name.

use super::check;
use super::socket::socket;
use hibernet_netstack::wire::Mac;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Name of a network interface as the kernel takes it: 1 to 15 bytes, no NUL, `/`, white space, `:`.
pub fn is_valid_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == 0 || b == b'/' || b == b':' || b.is_ascii_whitespace())
}

/// A request about the interface `name`; `InvalidInput` if no interface can have that name.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    if !is_valid_name(name) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `ifreq` is plain old data for which zero is a valid value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, &from) in req.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = from as libc::c_char;
    }
    Ok(req)
}

/// The name in a request that the kernel has answered.
pub(super) fn name_of(req: &libc::ifreq) -> String {
    req.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| char::from(c as u8)).collect()
}

/// A MAC address in a request that the kernel has answered; `None` if the interface is no Ethernet one.
pub(super) fn mac_of(req: &libc::ifreq) -> Option<Mac> {
    // SAFETY: the kernel has filled in the address for the request's ioctl (SIOCGIFHWADDR); any bits are valid.
    let addr = unsafe { req.ifr_ifru.ifru_hwaddr };
    (addr.sa_family == libc::ARPHRD_ETHER).then(|| Mac(std::array::from_fn(|i| addr.sa_data[i] as u8)))
}

/// A handle for questions about interfaces of the network namespace in which it was made.
#[derive(Debug)]
pub struct Interfaces(OwnedFd);

impl Interfaces {
    /// For the current network namespace.
    pub fn current() -> io::Result<Interfaces> {
        socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map(Interfaces)
    }

    fn ask(&self, number: libc::c_ulong, req: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: every `number` used in this file takes a pointer to an `ifreq`, which the kernel reads and writes within its size.
        check(unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), number as libc::Ioctl, req) }).map(drop)
    }

    /// Number of an interface. `ENODEV` if there is none of that name.
    pub fn index(&self, name: &str) -> io::Result<u32> {
        let mut req = request(name)?;
        self.ask(libc::SIOCGIFINDEX as libc::c_ulong, &mut req)?;
        // SAFETY: the kernel has filled in the number; any bits are valid.
        Ok(unsafe { req.ifr_ifru.ifru_ifindex } as u32)
    }

    /// Largest IP packet in bytes.
    pub fn mtu(&self, name: &str) -> io::Result<u32> {
        let mut req = request(name)?;
        self.ask(libc::SIOCGIFMTU as libc::c_ulong, &mut req)?;
        // SAFETY: the kernel has filled in the MTU; any bits are valid.
        Ok(unsafe { req.ifr_ifru.ifru_mtu } as u32)
    }

    /// Sets the largest IP packet in bytes. `EINVAL` if the interface cannot carry it.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut req = request(name)?;
        req.ifr_ifru.ifru_mtu = mtu.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        self.ask(libc::SIOCSIFMTU as libc::c_ulong, &mut req)
    }

    /// MAC address; `None` if it is no Ethernet interface.
    pub fn mac(&self, name: &str) -> io::Result<Option<Mac>> {
        let mut req = request(name)?;
        self.ask(libc::SIOCGIFHWADDR as libc::c_ulong, &mut req)?;
        Ok(mac_of(&req))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for ok in ["lo", "tap0", "a-b.c_d", "123456789012345"] {
            assert!(is_valid_name(ok), "{ok}");
        }
        for bad in ["", ".", "..", "1234567890123456", "a/b", "a b", "a:b", "a\0b", "a\n"] {
            assert!(!is_valid_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn loopback_is_no_ethernet_interface() {
        let i = Interfaces::current().unwrap();
        assert_eq!(i.index("lo").unwrap(), 1);
        assert_eq!(i.mac("lo").unwrap(), None);
        assert!(i.mtu("lo").unwrap() >= 1280);
        assert_eq!(i.index("nosuchthing").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(i.index("bad/name").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
