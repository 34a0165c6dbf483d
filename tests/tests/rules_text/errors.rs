//! What is refused: where, why, with which exit status.

use crate::{V4, V6};
use hibernet_netstack::iptables::text::{ErrorKind, ParseError, parse};

fn error(text: &str) -> ParseError {
    parse(V4, text).expect_err(text)
}

#[test]
fn errors_say_line_column_and_word() {
    for (text, line, column, word, code) in [
        ("*filter\n-A INPUT -p tcp --dporx 22\nCOMMIT\n", 2, 17, "--dporx", 2),
        ("*filter\n-A INPUT --dport 22\nCOMMIT\n", 2, 10, "--dport", 2),
        ("*filter\n-A INPUT -s 1.2.3.400\nCOMMIT\n", 2, 13, "1.2.3.400", 2),
        ("*filter\n-A INPUT -m comment --comment \"é\" -s x\nCOMMIT\n", 2, 38, "x", 2),
        ("*filter\n[1:2] -A INPUT -j NOPE\nCOMMIT\n", 2, 19, "NOPE", 2),
        ("*filter\n-A NOPE -j DROP\nCOMMIT\n", 2, 4, "NOPE", 1),
        ("*filter\n-A INPUT -p ! tcp\nCOMMIT\n", 2, 13, "!", 2),
        ("*filter\n-A INPUT -p tcp !\nCOMMIT\n", 2, 17, "!", 2),
        ("*filter\n-A INPUT stray\nCOMMIT\n", 2, 10, "stray", 2),
        ("*filter\n-A INPUT --protocol=nope\nCOMMIT\n", 2, 21, "nope", 2),
        ("*filter\n-A INPUT -pnope\nCOMMIT\n", 2, 12, "nope", 2),
        ("*filter\n-A INPUT -j\nCOMMIT\n", 2, 10, "-j", 2),
        ("*filter\n-j ACCEPT\nCOMMIT\n", 2, 10, "", 2),
        ("*filter\n:INPUT ACCEPT [0:0\nCOMMIT\n", 2, 15, "[0:0", 2),
        ("*filter\n:INPUT  MAYBE [0:0]\nCOMMIT\n", 2, 9, "MAYBE", 1),
        ("*filter\n:OWN DROP [0:0]\nCOMMIT\n", 2, 6, "DROP", 1),
        ("*filter\n:OWN\nCOMMIT\n", 2, 5, "", 2),
        ("*nope\nCOMMIT\n", 1, 2, "nope", 2),
        ("-A INPUT\n", 1, 1, "-A INPUT", 1),
        ("*filter\n-A INPUT\n", 3, 1, "", 1),
        ("*filter\n*nat\nCOMMIT\n", 2, 1, "*nat", 2),
        ("*filter\nCOMMIT \n", 2, 1, "COMMIT ", 2),
        ("*filter\nCOMMIT", 2, 7, "", 2),
        ("*filter\r\nCOMMIT\r\n", 1, 8, "", 2),
        ("*filter\n-A INPUT \"a\nCOMMIT\n", 2, 10, "\"a", 2),
        ("*filter\n-A IN\0PUT\nCOMMIT\n", 2, 6, "", 2),
    ] {
        let e = error(text);
        assert_eq!((e.line, e.column, e.word.as_str(), e.exit_code()), (line, column, word, code), "{text:?}: {e}");
        assert!(e.to_string().starts_with(&format!("line {line}, column {column}: ")), "{e}");
    }
}

#[test]
fn advice_names_what_to_do() {
    let says = |text: &str, advice: &str| {
        let e = error(&format!("*filter\n{text}\nCOMMIT\n")).to_string();
        assert!(e.contains(advice), "{e}");
    };
    says("-A INPUT --dport 22", "it belongs to `-m tcp`, which must come before it");
    says("-A INPUT --reject-with tcp-reset", "it belongs to `-j REJECT`");
    says("-A INPUT -s www.example.org", "host names are not looked up");
    says("-A OUTPUT -m owner --uid-owner someone", "names are not looked up");
    says("-A INPUT -p ! tcp", "`!` stands before the option");
    says("-A INPUT -o eth0", "-o has no meaning in INPUT");
    says("-t nat -A INPUT", "the line `*TABLE` says which table it is");
    says("-L", "take the line out");
    says("-A INPUT -j ACCEPT\r", "CR LF");
    says("-A INPUT --so 1.1.1.1 --d 1.1.1.1", "could be delete or delete-chain");
    says("-N x\n-N x", "exists already");
    says("-A INPUT -p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", "at most 15 ports");
    says("-A INPUT -p dccp --dport 5", "match dccp is not supported");
}

#[test]
fn what_linux_has_and_we_have_not_is_refused_by_name_with_the_reason() {
    let refused = |family, rule: &str, name: &str| {
        let e = parse(family, &format!("*mangle\n-A PREROUTING {rule}\nCOMMIT\n")).expect_err(rule);
        let ErrorKind::Unsupported { what, reason } = &e.kind else { panic!("{rule}: {e}") };
        assert!(what.contains(name) && !reason.is_empty() && e.exit_code() == 2, "{rule}: {e}");
    };
    for name in [
        "bpf",
        "cgroup",
        "cluster",
        "connlabel",
        "cpu",
        "dccp",
        "devgroup",
        "helper",
        "ipvs",
        "osf",
        "physdev",
        "policy",
        "quota",
        "rateest",
        "realm",
        "socket",
    ] {
        refused(V4, &format!("-m {name} --some-option 1"), name);
        refused(V6, &format!("! -s ::1 -m {name}"), name);
    }
    for name in [
        "AUDIT",
        "CLASSIFY",
        "CONNSECMARK",
        "ECN",
        "HMARK",
        "NFQUEUE",
        "QUEUE",
        "RATEEST",
        "SECMARK",
        "SYNPROXY",
        "TCPOPTSTRIP",
        "TEE",
        "TPROXY",
    ] {
        refused(V4, &format!("-p tcp -j {name} --some-option 1"), name);
    }
    refused(V6, "-m icmp --icmp-type 8", "icmp");
    refused(V4, "-m icmp6 --icmpv6-type 128", "icmp6");
    refused(V6, "-f", "-f");
    refused(V4, "-p tcp -j CT --helper ftp", "--helper of CT");
    refused(V4, "-j CT --zone mark", "--zone mark");
    refused(V4, "-j CONNMARK --save-mark --left-shift-mark 1", "--left-shift-mark");
    refused(V4, "-m owner --gid-owner 5 --suppl-groups", "--suppl-groups");
}

#[test]
fn names_of_chains_are_checked() {
    let name = |text: String| parse(V4, &format!("*filter\n{text}\nCOMMIT\n")).map(|_| ()).map_err(|e| e.exit_code());
    let (long, longer) = ("x".repeat(28), "x".repeat(29));
    assert_eq!(name(format!(":{long} - [0:0]\n-A {long} -j DROP\n-A INPUT -j {long}")), Ok(()));
    assert_eq!(name(format!(":{longer} - [0:0]")), Err(2));
    assert_eq!(name(format!("-N {longer}")), Err(2));
    for bad in ["ACCEPT", "DROP", "RETURN", "QUEUE", "-x", "!x", "a\u{7f}b"] {
        assert_eq!(name(format!("-N {bad}")), Err(2), "{bad}");
    }
    assert_eq!(name("-N LOG".to_owned()), Err(2));
    assert_eq!(name(":LOG - [0:0]".to_owned()), Ok(()));
    assert_eq!(name(":x - [0:0]\n:x - [0:0]".to_owned()), Err(2));
    assert_eq!(name("-N x\n-N x".to_owned()), Err(1));
    assert_eq!(name("-N INPUT".to_owned()), Err(1));
    assert_eq!(name("-E INPUT x".to_owned()), Err(1));
    assert_eq!(name("-X INPUT".to_owned()), Err(1));
    assert_eq!(name("-A INPUT -j OUTPUT".to_owned()), Err(1));
}
