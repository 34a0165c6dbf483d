//! DHCPv6 messages, RFC 8415.

use super::{Mac, WireError, Writer, be16, be32};
use core::net::Ipv6Addr;

/// Server port.
pub const SERVER_PORT: u16 = 547;
/// Client port.
pub const CLIENT_PORT: u16 = 546;
/// All_DHCP_Relay_Agents_and_Servers.
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Length of a message without options.
pub const FIXED_LEN: usize = 4;
/// Longest DUID, with its type: RFC 8415 section 11.1.
pub const MAX_DUID: usize = 130;

/// Option codes.
pub mod option {
    /// Client identifier.
    pub const CLIENT_ID: u16 = 1;
    /// Server identifier.
    pub const SERVER_ID: u16 = 2;
    /// Identity association for non-temporary addresses.
    pub const IA_NA: u16 = 3;
    /// Identity association for temporary addresses.
    pub const IA_TA: u16 = 4;
    /// Address of an identity association.
    pub const IA_ADDR: u16 = 5;
    /// Options asked for.
    pub const REQUESTED: u16 = 6;
    /// Preference of a server.
    pub const PREFERENCE: u16 = 7;
    /// Status code.
    pub const STATUS: u16 = 13;
    /// Rapid commit.
    pub const RAPID_COMMIT: u16 = 14;
    /// Recursive name servers, RFC 3646.
    pub const DNS: u16 = 23;
    /// Domain search list, RFC 3646.
    pub const SEARCH: u16 = 24;
    /// Identity association for prefixes.
    pub const IA_PD: u16 = 25;
    /// Client's full name, RFC 4704.
    pub const FQDN: u16 = 39;
}

/// Message types that a client sends, and those that answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Which servers are there?
    Solicit = 1,
    /// This one.
    Advertise,
    /// Then I want addresses.
    Request,
    /// Are my addresses right for this link?
    Confirm,
    /// I still want them.
    Renew,
    /// As renew, to any server.
    Rebind,
    /// The answer to all but a solicit.
    Reply,
    /// The client gives addresses back.
    Release,
    /// The client found addresses in use.
    Decline,
    /// The client has addresses and wants the rest.
    Inform = 11,
}

impl Kind {
    fn from_number(n: u8) -> Option<Kind> {
        use Kind::*;
        let all = [Solicit, Advertise, Request, Confirm, Renew, Rebind, Reply, Release, Decline, Inform];
        all.into_iter().find(|k| *k as u8 == n)
    }
}

/// Status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// All is well.
    Success = 0,
    /// No address to give.
    NoAddrsAvail = 2,
    /// The addresses do not belong to this link.
    NotOnLink = 4,
    /// Servers are to be addressed by multicast.
    UseMulticast = 5,
    /// No prefix to give.
    NoPrefixAvail = 6,
}

/// Options one after the other; ends where one is cut off.
#[derive(Clone, Copy, Debug)]
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_at_checked(4)?;
        let (value, rest) = rest.split_at_checked(be16(head, 2).into())?;
        self.0 = rest;
        Some((be16(head, 0), value))
    }
}

/// Refuses options that are cut off.
fn check_options(b: &[u8]) -> Result<(), WireError> {
    let mut o = Options(b);
    while o.next().is_some() {}
    if o.0.is_empty() { Ok(()) } else { Err(WireError::Truncated) }
}

/// An identity association of a client.
#[derive(Clone, Copy, Debug)]
pub struct Ia<'a> {
    /// [`option::IA_NA`], [`option::IA_TA`] or [`option::IA_PD`].
    pub kind: u16,
    /// Its identifier.
    pub id: u32,
    options: &'a [u8],
}

impl<'a> Ia<'a> {
    fn parse(kind: u16, b: &'a [u8]) -> Result<Ia<'a>, WireError> {
        // The others have two times behind the identifier.
        let fixed = if kind == option::IA_TA { 4 } else { 12 };
        let (head, options) = b.split_at_checked(fixed).ok_or(WireError::Truncated)?;
        check_options(options)?;
        if Options(options).any(|(code, v)| code == option::IA_ADDR && v.len() < 24) {
            return Err(WireError::Truncated);
        }
        Ok(Ia { kind, id: be32(head, 0), options })
    }

    /// Addresses that the client has or wants in it.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> + use<'a> {
        Options(self.options)
            .filter(|(code, _)| *code == option::IA_ADDR)
            .filter_map(|(_, v)| Some(Ipv6Addr::from(*v.first_chunk::<16>()?)))
    }
}

/// A client's message.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What it wants.
    pub kind: Kind,
    /// Transaction identifier.
    pub xid: [u8; 3],
    /// The client's DUID.
    pub client_id: Option<&'a [u8]>,
    /// DUID of the server meant.
    pub server_id: Option<&'a [u8]>,
    /// The client takes addresses at once.
    pub rapid_commit: bool,
    /// The client's full name: flags, and name in wire form.
    pub fqdn: Option<&'a [u8]>,
    /// The client wants to be told its full name.
    pub wants_fqdn: bool,
    options: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads a message. Unknown options are passed over; an option that may be there once and comes twice makes the message invalid.
    pub fn parse(b: &'a [u8]) -> Result<Request<'a>, WireError> {
        let (&[kind, xid @ ..], options) = b.split_first_chunk::<FIXED_LEN>().ok_or(WireError::Truncated)?;
        check_options(options)?;
        let mut m = Request {
            kind: Kind::from_number(kind).ok_or(WireError::Malformed)?,
            xid,
            client_id: None,
            server_id: None,
            rapid_commit: false,
            fqdn: None,
            wants_fqdn: false,
            options,
        };
        for (code, v) in Options(options) {
            let once = match code {
                option::CLIENT_ID => Some(&mut m.client_id),
                option::SERVER_ID => Some(&mut m.server_id),
                option::FQDN => Some(&mut m.fqdn),
                _ => None,
            };
            if let Some(field) = once {
                let duid = code != option::FQDN;
                if v.is_empty() || (duid && v.len() > MAX_DUID) || field.replace(v).is_some() {
                    return Err(WireError::Malformed);
                }
            }
            match code {
                option::RAPID_COMMIT => m.rapid_commit = true,
                option::REQUESTED => m.wants_fqdn |= v.chunks_exact(2).any(|c| be16(c, 0) == option::FQDN),
                option::IA_NA | option::IA_TA | option::IA_PD => _ = Ia::parse(code, v)?,
                _ => {}
            }
        }
        Ok(m)
    }

    /// Its identity associations.
    pub fn associations(&self) -> impl Iterator<Item = Ia<'a>> + use<'a> {
        Options(self.options)
            .filter(|(code, _)| matches!(*code, option::IA_NA | option::IA_TA | option::IA_PD))
            .filter_map(|(code, v)| Ia::parse(code, v).ok())
    }

    /// Starts an answer: type, transaction, and who talks to whom.
    pub fn put_reply(&self, w: &mut Writer<'_>, kind: Kind, server: Mac) {
        w.put(&[kind as u8]);
        w.put(&self.xid);
        if let Some(id) = self.client_id {
            put_option(w, option::CLIENT_ID, id);
        }
        put_option(w, option::SERVER_ID, &duid(server));
    }
}

/// A DUID made of a MAC address: DUID-LL, RFC 8415 section 11.4.
pub const fn duid(mac: Mac) -> [u8; 10] {
    let m = mac.0;
    [0, 3, 0, 1, m[0], m[1], m[2], m[3], m[4], m[5]]
}

/// Appends an option, whole or not at all.
pub fn put_option(w: &mut Writer<'_>, code: u16, value: &[u8]) -> bool {
    let Ok(len) = u16::try_from(value.len()) else { return false };
    w.room() >= 4 + value.len() && w.put16(code) && w.put16(len) && w.put(value)
}

/// Appends an option whose value `fill` appends.
pub fn put_nested(w: &mut Writer<'_>, code: u16, fill: impl FnOnce(&mut Writer<'_>)) {
    let start = w.len();
    w.put16(code);
    w.put16(0);
    fill(w);
    let len = (w.len() - start).saturating_sub(4) as u16;
    w.patch(start + 2, &len.to_be_bytes());
}

/// Appends a status without text.
pub fn put_status(w: &mut Writer<'_>, status: Status) {
    put_option(w, option::STATUS, &(status as u16).to_be_bytes());
}

/// Appends an address of an identity association, with its preferred and valid lifetime in seconds.
pub fn put_address(w: &mut Writer<'_>, addr: Ipv6Addr, lifetime: u32) {
    put_nested(w, option::IA_ADDR, |w| {
        w.put(&addr.octets());
        w.put32(lifetime);
        w.put32(lifetime);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_association_lists_its_addresses() {
        let a: Ipv6Addr = "fd00::5".parse().unwrap();
        let mut b = [0; 200];
        let mut w = Writer::new(&mut b);
        w.put(&[3, 1, 2, 3]);
        put_option(&mut w, option::CLIENT_ID, &[0, 1, 9]);
        put_nested(&mut w, option::IA_NA, |w| {
            w.put32(77);
            w.zeros(8);
            put_address(w, a, 60);
            put_status(w, Status::Success);
        });
        put_option(&mut w, option::REQUESTED, &[0, 23, 0, 39]);
        let q = Request::parse(w.written()).unwrap();
        assert_eq!((q.kind, q.xid, q.client_id, q.wants_fqdn), (Kind::Request, [1, 2, 3], Some(&[0, 1, 9][..]), true));
        let ias: Vec<_> = q.associations().collect();
        assert_eq!((ias.len(), ias[0].id, ias[0].kind), (1, 77, option::IA_NA));
        assert_eq!(ias[0].addresses().collect::<Vec<_>>(), [a]);
        for cut in 5..w.len() {
            // Cut inside of an option; the three places between options are fine.
            let cut_ok = [11, 11 + 16 + 28 + 6, w.len()].contains(&cut);
            assert_eq!(Request::parse(&w.written()[..cut]).is_ok(), cut_ok, "{cut}");
        }
    }

    #[test]
    fn what_is_impossible_is_refused() {
        for bad in [
            &[1, 0, 0][..],
            &[12, 0, 0, 0],
            &[1, 0, 0, 0, 0, 1, 0, 0],
            &[1, 0, 0, 0, 0, 1, 0, 1, 5, 0, 1, 0, 1, 5],
            &[1, 0, 0, 0, 0, 3, 0, 2, 0, 0],
            &[1, 0, 0, 0, 0, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0],
        ] {
            assert!(Request::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(kind in 0u8..14, codes in proptest::collection::vec((0u16..45, proptest::collection::vec(any::<u8>(), 0..60)), 0..8), cut in 0usize..500) {
            let mut b = vec![0; 1000];
            let mut w = Writer::new(&mut b);
            w.put(&[kind, 1, 2, 3]);
            for (code, value) in &codes {
                put_option(&mut w, *code, value);
            }
            let whole = w.written();
            if let Ok(q) = Request::parse(&whole[..cut.min(whole.len())]) {
                for ia in q.associations() {
                    ia.addresses().count();
                }
            }
        }
    }
}
