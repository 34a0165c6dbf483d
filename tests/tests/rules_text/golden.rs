//! Texts that went through the real tools: `tests/golden/rules/README.md` says whence they are.

use crate::{V4, V6, plain};
use hibernet_netstack::iptables::text::parse;
use hibernet_netstack::iptables::{Family, Program};
use std::path::PathBuf;

fn golden(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/rules").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn whole_texts_come_out_as_from_the_real_tools() {
    for (name, family) in [("commands4", V4), ("docker4", V4), ("docker6", V6), ("host4", V4), ("istio4", V4), ("kube4", V4)] {
        let saved = golden(&format!("{name}.saved"));
        let rules = parse(family, &golden(&format!("{name}.rules"))).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(plain(&rules), saved, "{name}");
        assert_eq!(parse(family, &saved).as_ref(), Ok(&rules), "{name}");
        Program::compile(&rules).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// `TABLE|CHAIN|RULE|PRINTED` by lines: see the head of the files.
fn singles(family: Family, name: &str) {
    let text = golden(name);
    let cases: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    assert!(cases.len() > 50, "{name} has lost its cases");
    for case in cases {
        let [table, chain, rule, want] = case.split('|').collect::<Vec<_>>()[..] else { panic!("{case}") };
        let read = parse(family, &format!("*{table}\n-A {chain} {rule}\nCOMMIT\n"));
        let compiled = match &read {
            Err(e) => Err(e.exit_code()),
            Ok(rules) => Program::compile(rules).map(|_| rules).map_err(|e| e.exit_code()),
        };
        let got = match compiled {
            Err(code) => format!("!{code}"),
            Ok(rules) => {
                let text = plain(rules);
                assert_eq!(parse(family, &text).map(|r| plain(&r)).as_ref(), Ok(&text), "{case}");
                let bare = |line: &str| line.strip_prefix(&format!("-A {chain}")).map(|l| l.trim_start().to_owned());
                let printed: Vec<String> =
                    text.lines().filter_map(bare).map(|l| if l.is_empty() { "-".to_owned() } else { l }).collect();
                printed.join(";")
            }
        };
        assert_eq!(got, want, "{case}: {:?}", read.err().map(|e| e.to_string()));
    }
}

#[test]
fn single_rules_come_out_as_from_the_real_tools() {
    singles(V4, "single4.txt");
    singles(V6, "single6.txt");
}

/// Where the real tool prints something that means less than what was loaded, we print all of it; where it loads what it
/// then does not do, we refuse.
#[test]
fn where_the_real_tool_forgets_we_do_not() {
    let printed = |family, table: &str, chain: &str, rule: &str| {
        let rules = parse(family, &format!("*{table}\n-A {chain} {rule}\nCOMMIT\n")).map_err(|e| e.exit_code())?;
        let text = plain(&rules);
        assert_eq!(parse(family, &text).as_ref(), Ok(&rules));
        Ok(text.lines().find(|l| l.starts_with("-A")).unwrap_or_default().to_owned())
    };
    for (table, chain, rule, want) in [
        ("filter", "INPUT", "! -i +", Ok("-A INPUT ! -i +")),
        ("filter", "FORWARD", "-p tcp ! --dport :", Ok("-A FORWARD -p tcp -m tcp ! --dport 0:65535")),
        ("filter", "INPUT", "-p icmp --icmp-type 3/0:4", Ok("-A INPUT -p icmp -m icmp --icmp-type 3/0:4")),
        (
            "filter",
            "INPUT",
            "-m conntrack --ctorigsrc 1.2.3.4/0.0.255.0",
            Ok("-A INPUT -m conntrack --ctorigsrc 0.0.3.0/0.0.255.0"),
        ),
        (
            "filter",
            "INPUT",
            "-m hashlimit --hashlimit-name a --hashlimit-upto 1100kb/s --hashlimit-burst 1100kb",
            Ok("-A INPUT -m hashlimit --hashlimit-upto 1100kb/s --hashlimit-burst 1100kb --hashlimit-name a"),
        ),
        (
            "filter",
            "INPUT",
            "-m recent --rcheck --name \"two words\"",
            Ok("-A INPUT -m recent --rcheck --name \"two words\" --mask 255.255.255.255 --rsource"),
        ),
        ("nat", "POSTROUTING", "-p tcp -j SNAT --to 1.1.1.1:80-90/85", Err(2)),
        ("nat", "PREROUTING", "-j NETMAP --to 1.2.3.4/255.0.255.0", Err(2)),
        ("nat", "PREROUTING", "-j DNAT --to 1.1.1.9-1.1.1.1", Err(2)),
        ("raw", "PREROUTING", "-j CT --zone-orig 1 --zone-reply 2", Err(2)),
        ("filter", "FORWARD", "-m comment --comment \"not closed", Err(2)),
        ("filter", "FORWARD", "-jACCEPT --protocol=tcp", Ok("-A FORWARD -p tcp -j ACCEPT")),
    ] {
        assert_eq!(printed(V4, table, chain, rule), want.map(str::to_owned), "{rule}");
    }
    assert_eq!(printed(V6, "nat", "PREROUTING", "-p tcp -j DNAT --to [dead::beef]80"), Err(2));
}
