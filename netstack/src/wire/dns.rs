//! DNS names and message headers, RFC 1035.

use super::{WireError, Writer, be16};
use core::net::IpAddr;

/// Length of a message header.
pub const HEADER_LEN: usize = 12;
/// Longest name on the wire, its root label included.
pub const MAX_NAME: usize = 255;
/// Type of address records of IPv4.
pub const A: u16 = 1;
/// Type of address records of IPv6.
pub const AAAA: u16 = 28;
/// Type of records that point to a name.
pub const PTR: u16 = 12;
/// Class "Internet".
pub const IN: u16 = 1;
/// Longest label.
const MAX_LABEL: usize = 63;

/// Appends a name given as text ("example.org", with or without the last dot) in wire form, uncompressed.
///
/// Nothing is written, and `false` returned, if it is no name that the DNS can carry, or does not fit.
pub fn put_name(name: &str, w: &mut Writer<'_>) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = |l: &str| (1..=MAX_LABEL).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_graphic());
    // One length byte for each label and the root add up to the text's length and 2.
    if name.len() + 2 > MAX_NAME || !name.split('.').all(valid) || w.room() < name.len() + 2 {
        return false;
    }
    for label in name.split('.') {
        w.put(&[label.len() as u8]);
        w.put(label.as_bytes());
    }
    w.put(&[0])
}

/// Length of the uncompressed name at the start of `b`.
fn name_len(b: &[u8]) -> Result<usize, WireError> {
    let mut at = 0;
    loop {
        let len = usize::from(*b.get(at).ok_or(WireError::Truncated)?);
        at += 1 + len;
        if len > MAX_LABEL || at > MAX_NAME {
            return Err(WireError::Malformed);
        }
        if len == 0 {
            return Ok(at);
        }
    }
}

/// The header of a message, and the place of its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Identifier that the requester chose.
    pub id: u16,
    /// The second word: QR, opcode and flags, response code.
    pub flags: u16,
    /// Number of questions: 0 or 1.
    pub questions: u16,
    /// Bytes of header and question together.
    pub question_end: u16,
}

impl Message {
    /// QR: the message is a response.
    pub const RESPONSE: u16 = 0x8000;
    /// Opcode.
    pub const OPCODE: u16 = 0x7800;
    /// AA: who answers is who knows.
    pub const AUTHORITATIVE: u16 = 0x0400;
    /// RD: recursion desired.
    pub const RECURSION_DESIRED: u16 = 0x0100;
    /// RA: recursion available.
    pub const RECURSION_AVAILABLE: u16 = 0x0080;
    /// Response code.
    pub const RCODE: u16 = 0x000f;
    /// Response code "format error".
    pub const FORMERR: u16 = 1;
    /// Response code "server failure".
    pub const SERVFAIL: u16 = 2;

    /// Reads the start of a message. More than one question is refused (RFC 9619), as is a compressed name in it.
    pub fn parse(b: &[u8]) -> Result<Message, WireError> {
        if b.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let questions = be16(b, 4);
        let question_end = match questions {
            0 => HEADER_LEN,
            1 => {
                let end = HEADER_LEN + name_len(&b[HEADER_LEN..])? + 4;
                if end > b.len() {
                    return Err(WireError::Truncated);
                }
                end
            }
            _ => return Err(WireError::Malformed),
        };
        Ok(Message { id: be16(b, 0), flags: be16(b, 2), questions, question_end: question_end as u16 })
    }

    /// Whether it is a response.
    pub const fn is_response(&self) -> bool {
        self.flags & Self::RESPONSE != 0
    }

    /// Response code.
    pub const fn rcode(&self) -> u16 {
        self.flags & Self::RCODE
    }
}

/// Whether the message `b`, a request whose start is `m`, carries EDNS (RFC 6891) as its first record behind the question,
/// where requesters put it.
pub fn has_edns(b: &[u8], m: &Message) -> bool {
    let no_others = b.get(6..10) == Some(&[0; 4]);
    no_others && b.get(usize::from(m.question_end)..).is_some_and(|rest| rest.starts_with(&[0, 0, 41]))
}

/// The name in wire form, type and class that a request asks for. `m` is its start.
pub fn question<'a>(b: &'a [u8], m: &Message) -> Option<(&'a [u8], u16, u16)> {
    let question = b.get(HEADER_LEN..m.question_end.into())?;
    let (name, rest) = question.split_at_checked(question.len().checked_sub(4)?)?;
    Some((name, be16(rest, 0), be16(rest, 2)))
}

/// A name in wire form as text without the last dot; `None` if it has other characters than names of hosts have.
pub fn name_text<'a>(name: &[u8], out: &'a mut [u8; MAX_NAME]) -> Option<&'a [u8]> {
    let (mut at, mut n) = (0, 0);
    loop {
        let len = usize::from(*name.get(at)?);
        if len == 0 {
            return Some(&out[..n]);
        }
        let label = name.get(at + 1..at + 1 + len)?;
        if n > 0 {
            *out.get_mut(n)? = b'.';
            n += 1;
        }
        // A dot within a label is none between two.
        if label.iter().any(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))) {
            return None;
        }
        out.get_mut(n..n + len)?.copy_from_slice(label);
        (at, n) = (at + 1 + len, n + len);
    }
}

/// The address that a name stands for as text in `in-addr.arpa` (RFC 1035) or `ip6.arpa` (RFC 3596); `None` if it is not a whole one.
pub fn reverse_address(name: &[u8]) -> Option<IpAddr> {
    let name = core::str::from_utf8(name).ok()?;
    let (labels, zone) = name.split_at_checked(name.len().checked_sub(9)?)?;
    if zone.eq_ignore_ascii_case(".ip6.arpa") {
        let mut bits = 0_u128;
        let mut count = 0;
        for label in labels.rsplit('.') {
            let &[digit] = label.as_bytes() else { return None };
            bits = bits << 4 | u128::from(char::from(digit).to_digit(16)?);
            count += 1;
        }
        return (count == 32).then(|| IpAddr::from(bits.to_be_bytes()));
    }
    let (labels, zone) = name.split_at_checked(name.len().checked_sub(13)?)?;
    if !zone.eq_ignore_ascii_case(".in-addr.arpa") {
        return None;
    }
    let mut octets = [0; 4];
    let mut found = labels.rsplit('.');
    for octet in &mut octets {
        let label = found.next()?;
        if label.starts_with('+') {
            return None;
        }
        *octet = label.parse().ok()?;
    }
    found.next().is_none().then(|| octets.into())
}

/// What a record says of the name that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// Its address, whose family is the record's type.
    Address(IpAddr),
    /// The name that it points to, as text (PTR).
    Pointer(&'a str),
}

/// A record of the name that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it says.
    pub data: Data<'a>,
    /// For how long it may be kept, in seconds.
    pub ttl: u32,
}

/// Longest record that [`put_answer`] writes.
pub const RECORD_LEN: usize = 12 + MAX_NAME;

/// Appends the answer to `query`, whose start is `m`: the record, or that there is none of the type. Nothing is written, and `false`
/// returned, if the query has no header, or is a response, or if the record points to what is no name.
pub fn put_answer(query: &[u8], m: &Message, record: Option<Record<'_>>, w: &mut Writer<'_>) -> bool {
    put_response(query, Some(m), Message::AUTHORITATIVE, record, w)
}

/// Length of an EDNS record without options.
pub const EDNS_LEN: usize = 11;

/// Appends the response that refuses `query` with a response code. `m` is the query's start; `None` if it could not be read,
/// then no question is repeated. Nothing is written, and `false` returned, if the query has no header, or is a response.
pub fn put_error(query: &[u8], m: Option<&Message>, rcode: u16, w: &mut Writer<'_>) -> bool {
    put_response(query, m, rcode, None, w)
}

fn put_response(query: &[u8], m: Option<&Message>, flags: u16, record: Option<Record<'_>>, w: &mut Writer<'_>) -> bool {
    if query.len() < HEADER_LEN || be16(query, 2) & Message::RESPONSE != 0 {
        return false;
    }
    let mut data = [0; MAX_NAME];
    let mut data = Writer::new(&mut data);
    let kind = match record.map(|r| r.data) {
        Some(Data::Address(IpAddr::V4(a))) => {
            data.put(&a.octets());
            A
        }
        Some(Data::Address(IpAddr::V6(a))) => {
            data.put(&a.octets());
            AAAA
        }
        Some(Data::Pointer(name)) if !put_name(name, &mut data) => return false,
        Some(Data::Pointer(_)) => PTR,
        None => 0,
    };
    let kept = be16(query, 2) & (Message::OPCODE | Message::RECURSION_DESIRED);
    let question = m.and_then(|m| query.get(HEADER_LEN..m.question_end.into())).unwrap_or_default();
    // RFC 6891 section 6.1.1: who asks with EDNS is answered with EDNS.
    let edns = m.is_some_and(|m| has_edns(query, m));
    w.put(&query[..2]);
    w.put16(Message::RESPONSE | kept | Message::RECURSION_AVAILABLE | flags);
    w.put16(u16::from(!question.is_empty()));
    w.put16(u16::from(record.is_some()));
    w.zeros(2);
    w.put16(u16::from(edns));
    w.put(question);
    if let Some(Record { ttl, .. }) = record {
        // The name is the question's, which stands behind the header.
        w.put16(0xc000 | HEADER_LEN as u16);
        w.put16(kind);
        w.put16(IN);
        w.put(&ttl.to_be_bytes());
        w.put16(data.len() as u16);
        w.put(data.written());
    }
    if edns {
        // Root name, type OPT, a payload of 1232 bytes, no extended code, version 0, no flags, no options.
        w.put(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    }
    !w.overflowed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Option<Vec<u8>> {
        let mut b = [0; 300];
        let mut w = Writer::new(&mut b);
        put_name(text, &mut w).then(|| w.written().to_vec())
    }

    #[test]
    fn names_are_labels_with_lengths() {
        assert_eq!(name("example.org").unwrap(), b"\x07example\x03org\0");
        assert_eq!(name("example.org."), name("example.org"));
        for bad in ["", ".", "a..b", "sp ace", "\u{fc}ber.de", &"x".repeat(64), &"a.".repeat(128)] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(name(&"a.".repeat(127)).unwrap().len(), MAX_NAME);
    }

    #[test]
    fn a_name_that_does_not_fit_leaves_nothing() {
        let mut b = [0; 12];
        let mut w = Writer::new(&mut b);
        assert!(!put_name("example.org", &mut w) && w.is_empty());
    }

    #[test]
    fn the_question_ends_behind_type_and_class() {
        let mut b = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        b.extend(b"\x01a\x00\x00\x01\x00\x01");
        let m = Message::parse(&b).unwrap();
        assert_eq!((m.id, m.question_end, m.is_response()), (0x1234, 19, false));
        assert!(!has_edns(&b, &m));
        b.extend([0, 0, 41, 4, 208]);
        assert!(has_edns(&b, &m));
        assert_eq!(Message::parse(&b[..18]), Err(WireError::Truncated));
        b[5] = 2;
        assert_eq!(Message::parse(&b), Err(WireError::Malformed));
        b[5] = 1;
        b[12] = 0xc0;
        assert_eq!(Message::parse(&b), Err(WireError::Malformed));
    }

    #[test]
    fn addresses_stand_backwards_in_reverse_names() {
        let v6 = "5.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.4.7.5.6.e.6.2.6.9.6.8.6.D.f.IP6.arpa";
        assert_eq!(reverse_address(v6.as_bytes()), Some("fd68:6962:6e65:7401::15".parse().unwrap()));
        assert_eq!(reverse_address(b"15.3.0.10.in-addr.ARPA"), Some("10.0.3.15".parse().unwrap()));
        let long = format!("0.{v6}");
        for bad in
            ["", "arpa", ".ip6.arpa", ".in-addr.arpa", "3.0.10.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "256.3.0.10.in-addr.arpa"]
                .into_iter()
                .chain(["+1.3.0.10.in-addr.arpa", "..0.10.in-addr.arpa", "15.3.0.10.in-addrxarpa", &v6[2..], &long, "web"])
        {
            assert_eq!(reverse_address(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_pointer_is_answered_with_a_name_or_not_at_all() {
        let mut q = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        q.extend(b"\x01a\x00\x00\x0c\x00\x01");
        let m = Message::parse(&q).unwrap();
        let mut b = [0; 64];
        let mut w = Writer::new(&mut b);
        assert!(!put_answer(&q, &m, Some(Record { data: Data::Pointer("a b"), ttl: 5 }), &mut w) && w.is_empty());
        assert!(put_answer(&q, &m, Some(Record { data: Data::Pointer("web"), ttl: 5 }), &mut w));
        let start = b"\x12\x34\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00\x01a\x00\x00\x0c\x00\x01";
        assert_eq!(w.written(), [&start[..], b"\xc0\x0c\x00\x0c\x00\x01\x00\x00\x00\x05\x00\x05\x03web\x00"].concat());
    }

    #[test]
    fn an_error_repeats_the_question_and_answers_edns() {
        let mut q = vec![0x12, 0x34, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
        q.extend(b"\x01a\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00");
        let m = Message::parse(&q).unwrap();
        let mut b = [0; 64];
        let mut w = Writer::new(&mut b);
        assert!(put_error(&q, Some(&m), Message::SERVFAIL, &mut w));
        assert_eq!(w.written(), b"\x12\x34\x81\x82\0\x01\0\0\0\0\0\x01\x01a\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0");
        let mut w = Writer::new(&mut b);
        assert!(put_error(&q, None, Message::FORMERR, &mut w));
        assert_eq!(w.written(), b"\x12\x34\x81\x81\0\0\0\0\0\0\0\0");
        q[2] |= 0x80;
        assert!(!put_error(&q, Some(&m), Message::SERVFAIL, &mut Writer::new(&mut b)));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_stays_inside(b in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(m) = Message::parse(&b) {
                prop_assert!(usize::from(m.question_end) <= b.len());
                let mut out = [0; HEADER_LEN + MAX_NAME + 4 + EDNS_LEN];
                let mut w = Writer::new(&mut out);
                if put_error(&b, Some(&m), Message::SERVFAIL, &mut w) {
                    let told = Message::parse(w.written()).unwrap();
                    prop_assert_eq!((told.id, told.rcode(), told.questions), (m.id, Message::SERVFAIL, m.questions));
                } else {
                    prop_assert!(m.is_response());
                }
            }
        }
    }
}
