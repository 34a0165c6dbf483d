//! The line of LOG, as Linux writes it.

use crate::kit::*;
use hibernet_netstack::edge::LinkId;
use hibernet_netstack::iptables::*;
use hibernet_netstack::packet::L4;
use hibernet_netstack::skb::{Owner, Skb};
use hibernet_netstack::tuple::{Endpoint, Tuple};
use hibernet_netstack::wire::icmp;

/// `02:..:02 <- 02:..:01`, IPv4.
const LINK: [u8; 14] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
/// Identification 54321, DF, with a router-alert option.
const IPV4: [u8; 24] = [0x46, 0, 0, 60, 0xd4, 0x31, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x94, 4, 0, 0];
const ALL: u8 = log_flags::TCP_SEQUENCE | log_flags::TCP_OPTIONS | log_flags::IP_OPTIONS | log_flags::UID;

fn line(skb: &Skb<'_>, flags: u8, raw: RawHeaders<'_>) -> String {
    let target = LogTarget { level: 4, prefix: "P: ".into(), flags };
    LogEntry { target: &target, hook: Hook::Forward, skb, raw }.to_string()
}

fn forwarded(mut skb: Skb<'static>) -> Skb<'static> {
    skb.input = Some(Iface::Link(LinkId(0)));
    skb.output = Some(Iface::Host0);
    skb.len = 60;
    skb
}

fn syn(v6: bool) -> Skb<'static> {
    let mut b = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 9, 0, 0, 0, 7, 0x60, 0x02, 0x72, 0x10, 0, 0, 0, 0];
    b.extend([2, 4, 5, 0xb4]);
    if v6 {
        let mut skb = tcp_bytes(false, b);
        (skb.src, skb.dst) = (ip("fd00::1"), ip("2001:db8::2"));
        return skb;
    }
    tcp_bytes(false, b)
}

#[test]
fn tcp_over_ipv4() {
    let raw = RawHeaders { link: &LINK, ip: &IPV4 };
    let skb = forwarded(syn(false));
    assert_eq!(
        line(&skb, 0, raw),
        "P: IN=tap0 OUT=host0 MAC=02:00:00:00:00:02:02:00:00:00:00:01:08:00 SRC=10.0.0.1 DST=10.0.0.2 LEN=60 TOS=0x00 PREC=0x00 \
         TTL=64 ID=54321 DF PROTO=TCP SPT=40000 DPT=80 WINDOW=29200 RES=0x00 SYN URGP=0 "
    );
    let mut marked = skb.clone();
    (marked.mark, marked.tos, marked.owner) = (0x1a, 0xb8, Some(Owner { uid: 1000, gid: 100 }));
    assert_eq!(
        line(&marked, ALL | log_flags::MACDECODE, raw),
        "P: IN=tap0 OUT=host0 MACSRC=02:00:00:00:00:01 MACDST=02:00:00:00:00:02 MACPROTO=0800 SRC=10.0.0.1 DST=10.0.0.2 LEN=60 \
         TOS=0x18 PREC=0xA0 TTL=64 ID=54321 DF OPT (94040000) PROTO=TCP SPT=40000 DPT=80 SEQ=9 ACK=7 WINDOW=29200 RES=0x00 SYN \
         URGP=0 OPT (020405B4) UID=1000 GID=100 MARK=0x1a "
    );
    // Without headers at hand; from host0, which has no link header; and translated.
    let mut back = syn(false);
    back.len = 44;
    (back.input, back.output, back.dport, back.dst) = (Some(Iface::Host0), None, 8080, ip("192.0.2.9"));
    assert_eq!(
        line(&back, 0, RawHeaders::default()),
        "P: IN=host0 OUT= MAC= SRC=10.0.0.1 DST=192.0.2.9 LEN=44 TOS=0x00 PREC=0x00 TTL=64 ID=0 PROTO=TCP SPT=40000 DPT=8080 \
         WINDOW=29200 RES=0x00 SYN URGP=0 "
    );
    // All flags, and the reserved bits.
    let mut b = vec![0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x5f, 0xff, 0, 1, 0, 0, 0, 3];
    let all = tcp_bytes(false, core::mem::take(&mut b));
    assert!(
        line(&all, ALL, RawHeaders::default())
            .ends_with("SPT=1 DPT=2 SEQ=0 ACK=0 WINDOW=1 RES=0x3c CWR ECE URG ACK PSH RST SYN FIN URGP=3 ")
    );
}

#[test]
fn udp_and_unknown_protocols_over_ipv4() {
    let mut skb = forwarded(udp(false, 53, 1024));
    skb.len = 28;
    let start = "P: IN=tap0 OUT=host0 MAC= SRC=10.0.0.1 DST=10.0.0.2 LEN=28 TOS=0x00 PREC=0x00 TTL=64 ID=0 ";
    assert_eq!(line(&skb, 0, RawHeaders::default()), format!("{start}PROTO=UDP SPT=53 DPT=1024 LEN=8 "));
    for (protocol, bytes, end) in [
        (47, &[][..], "PROTO=47 "),
        (50, &[0, 0, 0x12, 0x34, 0, 0, 0, 1], "PROTO=ESP SPI=0x1234 "),
        (51, &[6, 4, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1], "PROTO=AH SPI=0x9 "),
        (136, &[0, 5, 0, 6, 0, 9, 0, 0], "PROTO=UDPLITE SPT=0 DPT=0 LEN=9 "),
        (50, &[0], "PROTO=ESP INCOMPLETE [80 bytes] "),
        (17, &[0], "PROTO=UDP INCOMPLETE [80 bytes] "),
    ] {
        let mut skb = forwarded(packet("10.0.0.1", "10.0.0.2", L4::Other, bytes));
        (skb.protocol, skb.len) = (protocol, 28);
        assert_eq!(line(&skb, 0, RawHeaders::default()), format!("{start}{end}"));
    }
}

fn icmp_of(v6: bool, bytes: Vec<u8>) -> Skb<'static> {
    let h = icmp::Header::parse(&bytes).unwrap();
    let (src, dst) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
    let len = bytes.len() as u32;
    let mut skb = forwarded(packet(src, dst, if v6 { L4::Icmpv6(h) } else { L4::Icmp(h) }, bytes.leak()));
    skb.l4_len = len;
    skb
}

#[test]
fn icmp_over_ipv4() {
    let end = |bytes: Vec<u8>| {
        let l = line(&icmp_of(false, bytes), 0, RawHeaders::default());
        l.split_once("PROTO=ICMP ").unwrap().1.to_owned()
    };
    assert_eq!(end(vec![8, 0, 0, 0, 0x12, 0x34, 0, 5]), "TYPE=8 CODE=0 ID=4660 SEQ=5 ");
    assert_eq!(end(vec![13, 0, 0, 0, 0, 1, 0, 5]), "TYPE=13 CODE=0 INCOMPLETE [8 bytes] ");
    assert_eq!(end(vec![42, 7, 0, 0, 0, 1, 0, 5]), "TYPE=42 CODE=7 ");
    assert_eq!(end(vec![3, 3, 0, 0, 0, 0, 0, 0]), "TYPE=3 CODE=3 INCOMPLETE [8 bytes] ");
    let quoted = |head: [u8; 8]| {
        let mut b = head.to_vec();
        b.extend([0x45, 0, 0, 40, 0, 7, 0x40, 0, 63, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
        b.extend([0, 53, 0x04, 0x00, 0, 20, 0, 0]);
        b
    };
    let inner = "[SRC=10.0.0.2 DST=10.0.0.1 LEN=40 TOS=0x00 PREC=0x00 TTL=63 ID=7 DF PROTO=UDP SPT=53 DPT=1024 LEN=20 ] ";
    assert_eq!(end(quoted([3, 3, 0, 0, 0, 0, 0, 0])), format!("TYPE=3 CODE=3 {inner}"));
    assert_eq!(end(quoted([3, 4, 0, 0, 0, 0, 0x05, 0x14])), format!("TYPE=3 CODE=4 {inner}MTU=1300 "));
    assert_eq!(end(quoted([5, 1, 0, 0, 10, 0, 0, 9])), format!("TYPE=5 CODE=1 GATEWAY=10.0.0.9 {inner}"));
    assert_eq!(end(quoted([12, 0, 0, 0, 20, 0, 0, 0])), "TYPE=12 CODE=0 PARAMETER=20 ");
    // A quote that is translated, one of an error, one that is cut off, and one of a later fragment.
    let mut skb = icmp_of(false, quoted([11, 0, 0, 0, 0, 0, 0, 0]));
    let end_of = |skb: &Skb<'_>| line(skb, 0, RawHeaders::default()).split_once("CODE=0 ").unwrap().1.to_owned();
    let e = |a, p| Endpoint::new(ip(a), p);
    skb.quoted = Some(Tuple { src: e("192.0.2.1", 5353), dst: e("192.0.2.2", 99), proto: 17 });
    let translated = "[SRC=192.0.2.1 DST=192.0.2.2 LEN=40 TOS=0x00 PREC=0x00 TTL=63 ID=7 DF PROTO=UDP SPT=5353 DPT=99 LEN=20 ] ";
    assert_eq!(end_of(&skb), translated);
    let mut error = quoted([11, 0, 0, 0, 0, 0, 0, 0]);
    error[17] = 1;
    error[28..36].copy_from_slice(&[3, 1, 0, 0, 0, 0, 0, 0]);
    error.extend([0; 20]);
    assert!(end_of(&icmp_of(false, error)).ends_with("PROTO=ICMP TYPE=3 CODE=1 ] "));
    let cut = quoted([11, 0, 0, 0, 0, 0, 0, 0])[..32].to_vec();
    assert!(end_of(&icmp_of(false, cut)).ends_with("PROTO=UDP INCOMPLETE [4 bytes] ] "));
    let mut later = quoted([11, 0, 0, 0, 0, 0, 0, 0]);
    later[14..16].copy_from_slice(&[0x20, 0x03]);
    assert!(end_of(&icmp_of(false, later)).ends_with("ID=7 MF FRAG:3 PROTO=UDP ] "));
}

#[test]
fn ipv6() {
    // Traffic class 0xb8, flow label 0x12345; a hop-by-hop header before TCP.
    let mut raw = vec![0x6b, 0x81, 0x23, 0x45, 0, 32, 0, 64];
    raw.extend([0; 32]);
    raw.extend([6, 0, 1, 4, 0, 0, 0, 0]);
    let mut skb = forwarded(syn(true));
    (skb.len, skb.tos) = (72, 0xb8);
    let start = "P: IN=tap0 OUT=host0 MAC= SRC=fd00:0000:0000:0000:0000:0000:0000:0001 \
                 DST=2001:0db8:0000:0000:0000:0000:0000:0002 LEN=72 TC=184 HOPLIMIT=64 ";
    let tcp = "PROTO=TCP SPT=40000 DPT=80 WINDOW=29200 RES=0x00 SYN URGP=0 ";
    let with = |flags| line(&skb, flags, RawHeaders { link: &[], ip: &raw });
    assert_eq!(with(0), format!("{start}FLOWLBL=74565 {tcp}"));
    assert_eq!(with(log_flags::IP_OPTIONS), format!("{start}FLOWLBL=74565 OPT ( ) {tcp}"));
    assert_eq!(line(&skb, 0, RawHeaders::default()), format!("{start}FLOWLBL=0 {tcp}"));
}

#[test]
fn icmpv6() {
    let end = |bytes: Vec<u8>, flags| {
        let l = line(&icmp_of(true, bytes), flags, RawHeaders::default());
        l.split_once("PROTO=ICMPv6 ").unwrap().1.to_owned()
    };
    assert_eq!(end(vec![128, 0, 0, 0, 0, 9, 0, 5], 0), "TYPE=128 CODE=0 ID=9 SEQ=5 ");
    assert_eq!(end(vec![135, 0, 0, 0, 0, 0, 0, 0], 0), "TYPE=135 CODE=0 ");
    let quoted = |head: [u8; 8], next: u8, rest: &[u8]| {
        let mut b = head.to_vec();
        b.extend([0x60, 0, 0, 0, 0, 8, next, 63]);
        b.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        b.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        b.extend(rest);
        b
    };
    let udp = [0, 53, 0x04, 0x00, 0, 8, 0, 0];
    let inner = "[SRC=fd00:0000:0000:0000:0000:0000:0000:0002 DST=fd00:0000:0000:0000:0000:0000:0000:0001 LEN=48 TC=0 HOPLIMIT=63 FLOWLBL=0 ";
    assert_eq!(
        end(quoted([2, 0, 0, 0, 0, 0, 5, 0], 17, &udp), 0),
        format!("TYPE=2 CODE=0 {inner}PROTO=UDP SPT=53 DPT=1024 LEN=8 ] MTU=1280 ")
    );
    assert_eq!(
        end(quoted([4, 1, 0, 0, 0, 0, 0, 40], 17, &udp), 0),
        format!("TYPE=4 CODE=1 POINTER=00000028 {inner}PROTO=UDP SPT=53 DPT=1024 LEN=8 ] ")
    );
    let mut fragment = vec![17, 0, 0, 0x19, 0, 0, 0xab, 0xcd];
    fragment.extend(udp);
    assert_eq!(
        end(quoted([1, 4, 0, 0, 0, 0, 0, 0], 44, &fragment), log_flags::IP_OPTIONS),
        format!("TYPE=1 CODE=4 {inner}OPT ( FRAG:24 INCOMPLETE ID:0000abcd ) PROTO=UDP ] ")
    );
    assert_eq!(end(quoted([1, 4, 0, 0, 0, 0, 0, 0], 44, &[17]), 0), format!("TYPE=1 CODE=4 {inner}TRUNCATED] "));
    let ah = [17, 0, 0, 0, 0, 0, 0, 9];
    let with_ah: Vec<_> = ah.iter().chain(&udp).copied().collect();
    assert_eq!(
        end(quoted([1, 4, 0, 0, 0, 0, 0, 0], 51, &with_ah), log_flags::IP_OPTIONS),
        format!("TYPE=1 CODE=4 {inner}OPT ( AH SPI=0x9 ) PROTO=UDP SPT=53 DPT=1024 LEN=8 ] ")
    );
    assert_eq!(
        end(quoted([1, 4, 0, 0, 0, 0, 0, 0], 50, &ah), log_flags::IP_OPTIONS),
        format!("TYPE=1 CODE=4 {inner}OPT ( ESP SPI=0x11000000 )] ")
    );
}

/// Whatever a packet is, its line is made.
mod properties {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_make_a_line(v6: bool, protocol: u8, bytes in vec(any::<u8>(), 0..120), raw in vec(any::<u8>(), 0..80), link in vec(any::<u8>(), 0..20), flags: u8) {
            let (src, dst) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
            let mut skb = packet(src, dst, L4::Other, &[]);
            skb.protocol = protocol;
            skb.input = Some(Iface::Host0);
            skb.l4_bytes = &bytes;
            let l = line(&skb, flags, RawHeaders { link: &link, ip: &raw });
            prop_assert!(l.starts_with("P: IN=host0 OUT= MAC") && l.contains(" SRC=") && !l.contains('\n'));
        }
    }
}
