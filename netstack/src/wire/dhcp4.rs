//! DHCP messages, RFC 2131 and RFC 2132.

use super::{Mac, WireError, Writer, be16, be32};
use core::net::Ipv4Addr;

/// Server port.
pub const SERVER_PORT: u16 = 67;
/// Client port.
pub const CLIENT_PORT: u16 = 68;
/// Length of the fixed part, the magic cookie included.
pub const FIXED_LEN: usize = 240;
/// Shortest message that all clients and relays take: RFC 1542 section 2.1.
pub const MIN_LEN: usize = 300;
/// Flag: the client cannot receive unicast yet.
pub const BROADCAST: u16 = 0x8000;

const SNAME: core::ops::Range<usize> = 44..108;
const FILE: core::ops::Range<usize> = 108..236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// Option codes.
pub mod option {
    /// Subnet mask.
    pub const MASK: u8 = 1;
    /// Routers.
    pub const ROUTER: u8 = 3;
    /// Domain name servers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOSTNAME: u8 = 12;
    /// Domain name.
    pub const DOMAIN: u8 = 15;
    /// Interface MTU.
    pub const MTU: u8 = 26;
    /// Requested address.
    pub const REQUESTED: u8 = 50;
    /// Lease time in seconds.
    pub const LEASE: u8 = 51;
    /// The fields `file` and `sname` hold options.
    pub const OVERLOAD: u8 = 52;
    /// Message type.
    pub const TYPE: u8 = 53;
    /// Server identifier.
    pub const SERVER: u8 = 54;
    /// Maximum message size.
    pub const MAX_SIZE: u8 = 57;
    /// Client identifier.
    pub const CLIENT_ID: u8 = 61;
    /// Rapid commit, RFC 4039.
    pub const RAPID_COMMIT: u8 = 80;
    /// Client's full name, RFC 4702.
    pub const FQDN: u8 = 81;
    /// Relay agent information, RFC 3046.
    pub const RELAY: u8 = 82;
    /// Domain search list, RFC 3397.
    pub const SEARCH: u8 = 119;
    /// Classless static routes, RFC 3442.
    pub const ROUTES: u8 = 121;
}

/// Message types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who has an address for me?
    Discover = 1,
    /// This one.
    Offer,
    /// Then I want it; or: I still want it.
    Request,
    /// The client found the address in use.
    Decline,
    /// It is yours.
    Ack,
    /// It is not.
    Nak,
    /// The client gives it back.
    Release,
    /// The client has an address and wants the rest.
    Inform,
}

impl Kind {
    fn from_number(n: u8) -> Option<Kind> {
        use Kind::*;
        [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform].into_iter().find(|k| *k as u8 == n)
    }
}

/// A client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it wants.
    pub kind: Kind,
    /// Transaction identifier.
    pub xid: u32,
    /// Flags; see [`BROADCAST`].
    pub flags: u16,
    /// Address that the client has and answers at; unspecified if none.
    pub client: Ipv4Addr,
    /// Relay that the message came through; unspecified if none.
    pub relay: Ipv4Addr,
    /// The client's MAC address.
    pub mac: Mac,
    /// Address asked for.
    pub requested: Option<Ipv4Addr>,
    /// Server meant.
    pub server: Option<Ipv4Addr>,
    /// Longest message that the client takes, IP and UDP headers included.
    pub max_size: Option<u16>,
    /// Client identifier.
    pub client_id: Option<&'a [u8]>,
    /// Client's full name: flags, two response codes, name.
    pub fqdn: Option<&'a [u8]>,
    /// Relay agent information.
    pub relay_info: Option<&'a [u8]>,
    /// The client takes an acknowledgement at once.
    pub rapid_commit: bool,
}

impl<'a> Request<'a> {
    /// Reads a message. Where an option comes twice the first counts; unknown ones are passed over.
    pub fn parse(b: &'a [u8]) -> Result<Request<'a>, WireError> {
        if b.len() < FIXED_LEN {
            return Err(WireError::Truncated);
        }
        // BOOTREQUEST over Ethernet.
        if b[..3] != [1, 1, 6] || b[236..FIXED_LEN] != MAGIC {
            return Err(WireError::Malformed);
        }
        let addr = |at| Ipv4Addr::from_bits(be32(b, at));
        let mac = Mac(core::array::from_fn(|i| b[28 + i]));
        let mut m = Request {
            kind: Kind::Discover,
            xid: be32(b, 4),
            flags: be16(b, 10),
            client: addr(12),
            relay: addr(24),
            mac,
            requested: None,
            server: None,
            max_size: None,
            client_id: None,
            fqdn: None,
            relay_info: None,
            rapid_commit: false,
        };
        let (mut kind, mut overload) = (None, None);
        m.options(&b[FIXED_LEN..], &mut kind, &mut overload)?;
        // RFC 2132 section 9.3; the fields cannot be overloaded once more.
        let overload = overload.unwrap_or(0);
        if overload & 1 != 0 {
            m.options(&b[FILE], &mut kind, &mut None)?;
        }
        if overload & 2 != 0 {
            m.options(&b[SNAME], &mut kind, &mut None)?;
        }
        m.kind = kind.and_then(Kind::from_number).ok_or(WireError::Malformed)?;
        if !mac.is_unicast() {
            return Err(WireError::Malformed);
        }
        Ok(m)
    }

    fn options(&mut self, mut b: &'a [u8], kind: &mut Option<u8>, overload: &mut Option<u8>) -> Result<(), WireError> {
        loop {
            let (code, rest) = match b {
                // The end mark is missing in some clients' messages.
                [] | [255, ..] => return Ok(()),
                [0, rest @ ..] => {
                    b = rest;
                    continue;
                }
                [code, rest @ ..] => (*code, rest),
            };
            let (&len, rest) = rest.split_first().ok_or(WireError::Truncated)?;
            let (value, rest) = rest.split_at_checked(len.into()).ok_or(WireError::Truncated)?;
            b = rest;
            match (code, value) {
                (option::REQUESTED, &[a, b, c, d]) => _ = self.requested.get_or_insert(Ipv4Addr::new(a, b, c, d)),
                (option::SERVER, &[a, b, c, d]) => _ = self.server.get_or_insert(Ipv4Addr::new(a, b, c, d)),
                (option::OVERLOAD, &[v]) => _ = overload.get_or_insert(v),
                (option::TYPE, &[v]) => _ = kind.get_or_insert(v),
                (option::MAX_SIZE, &[a, b]) => _ = self.max_size.get_or_insert(u16::from_be_bytes([a, b])),
                (option::CLIENT_ID, v) if !v.is_empty() => _ = self.client_id.get_or_insert(v),
                (option::RAPID_COMMIT, &[]) => self.rapid_commit = true,
                (option::FQDN, v) if v.len() >= 3 => _ = self.fqdn.get_or_insert(v),
                (option::RELAY, v) => _ = self.relay_info.get_or_insert(v),
                (option::REQUESTED | option::SERVER | option::OVERLOAD | option::TYPE | option::MAX_SIZE, _) => {
                    return Err(WireError::Malformed);
                }
                _ => {}
            }
        }
    }

    /// Starts a reply: its fixed part, and its type. `yours` is the address given, unspecified if none.
    pub fn put_reply(&self, w: &mut Writer<'_>, kind: Kind, yours: Ipv4Addr) {
        // BOOTREPLY; no hops.
        w.put(&[2, 1, 6, 0]);
        w.put32(self.xid);
        w.put16(0);
        w.put16(self.flags);
        // RFC 2131 table 3: a refusal repeats no address.
        let client = if kind == Kind::Nak { Ipv4Addr::UNSPECIFIED } else { self.client };
        w.put(&client.octets());
        w.put(&yours.octets());
        w.zeros(4);
        w.put(&self.relay.octets());
        w.put(&self.mac.0);
        w.zeros(10 + SNAME.len() + FILE.len());
        w.put(&MAGIC);
        put_option(w, option::TYPE, &[kind as u8]);
    }
}

/// Appends an option, whole or not at all, and leaves room for the end mark. What is longer than 255 bytes is split (RFC 3396).
pub fn put_option(w: &mut Writer<'_>, code: u8, value: &[u8]) -> bool {
    let parts = value.len().div_ceil(255).max(1);
    if w.room() < value.len() + 2 * parts + 1 {
        return false;
    }
    if value.is_empty() {
        w.put(&[code, 0]);
    }
    for part in value.chunks(255) {
        w.put(&[code, part.len() as u8]);
        w.put(part);
    }
    true
}

/// Ends the options.
pub fn put_end(w: &mut Writer<'_>) {
    w.put(&[255]);
    w.zeros(MIN_LEN.saturating_sub(w.len()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(options: &[u8]) -> Vec<u8> {
        let mut b = vec![0; FIXED_LEN];
        b[..3].copy_from_slice(&[1, 1, 6]);
        b[4..8].copy_from_slice(&[1, 2, 3, 4]);
        b[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        b[236..240].copy_from_slice(&MAGIC);
        b.extend(options);
        b
    }

    #[test]
    fn padding_and_end_are_not_options() {
        let m = message(&[0, 0, 53, 1, 3, 0, 50, 4, 10, 0, 2, 15, 255, 54, 9]);
        let r = Request::parse(&m).unwrap();
        assert_eq!((r.kind, r.requested, r.server), (Kind::Request, Some(Ipv4Addr::new(10, 0, 2, 15)), None));
        assert_eq!((r.xid, r.mac), (0x0102_0304, Mac([2, 0, 0, 0, 0, 9])));
        // Without an end mark, and with one pad byte at the very end.
        assert!(Request::parse(&message(&[53, 1, 1])).is_ok());
        assert!(Request::parse(&message(&[53, 1, 1, 0])).is_ok());
    }

    #[test]
    fn options_stand_in_file_and_sname_when_overloaded() {
        for (overload, requested, server) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)] {
            let mut m = message(&[53, 1, 3, 52, 1, overload, 255]);
            m[FILE.start..FILE.start + 7].copy_from_slice(&[50, 4, 1, 2, 3, 4, 255]);
            m[SNAME.start..SNAME.start + 7].copy_from_slice(&[54, 4, 5, 6, 7, 8, 255]);
            let r = Request::parse(&m).unwrap();
            assert_eq!((r.requested.is_some(), r.server.is_some()), (requested, server), "overload {overload}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = message(&[53, 1, 1, 255]);
        assert_eq!(Request::parse(&good[..239]), Err(WireError::Truncated));
        for (at, value) in [(0, 2), (1, 6), (2, 8), (236, 0), (28, 1), (242, 0), (242, 9), (241, 2)] {
            let mut b = good.clone();
            b[at] = value;
            assert!(Request::parse(&b).is_err(), "byte {at} = {value}");
        }
        for options in
            [&[53][..], &[53, 2, 1], &[53, 1, 1, 50], &[53, 1, 1, 61, 9, 1], &[53, 1, 1, 50, 3, 1, 2, 3], &[12, 0, 255]]
        {
            assert!(Request::parse(&message(options)).is_err(), "{options:?}");
        }
    }

    #[test]
    fn a_long_option_is_split_and_one_that_does_not_fit_left_out() {
        let mut b = [0; 310];
        let mut w = Writer::new(&mut b);
        assert!(put_option(&mut w, 119, &[7; 300]));
        assert_eq!((&w.written()[..2], &w.written()[257..259]), (&[119, 255][..], &[119, 45][..]));
        assert_eq!(w.len(), 304);
        assert!(!put_option(&mut w, 1, &[0; 4]) && w.len() == 304);
        assert!(put_option(&mut w, 1, &[0; 3]));
        put_end(&mut w);
        assert!(!w.overflowed() && w.written().ends_with(&[255]));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(b in proptest::collection::vec(any::<u8>(), 0..400), options in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::parse(&b);
            let _ = Request::parse(&message(&options));
        }
    }
}
