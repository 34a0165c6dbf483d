//! Sets, beside the real `ipset`, and in a sandbox.

use hibernet_netstack::Time;
use hibernet_netstack::ipset::Sets;
use hibernet_tests::lab::{Lab, Place, skip};

/// Every kind of set, with what its elements can have; no time-outs that run.
const SETS: &str = "\
create a hash:ip maxelem 9
add a 10.0.0.0/29
add a 10.0.1.1
create m hash:ip netmask 24 forceadd
add m 10.0.0.1
add m 10.0.1.1-10.0.3.1
create a6 hash:ip family inet6 hashsize 100 timeout 0 counters comment
add a6 fd00::1 comment \"a \\b\" packets 5 bytes 6
add a6 fd00::2
create b hash:net timeout 0 counters comment
add b 10.0.0.0/8
add b 10.1.0.0/16 nomatch comment \"x y\"
add b 1.2.3.4
add b 192.168.0.0-192.168.2.255
add b 9.9.9.9-8.8.8.8
create b6 hash:net family inet6
add b6 fd00::/8
add b6 ::1.2.3.4
create c hash:ip,port
add c 1.1.1.1,80
add c 1.1.1.2/31,icmp:echo-request
add c 1.1.1.2,icmp:3/1
add c 1.1.1.2,icmp:250/7
add c 1.1.1.2,gre:0
add c 1.1.1.2,99:0
add c 1.1.1.2,sctp:99
add c 1.1.1.2,udplite:99
add c 1.1.1.2,tcp:20-22
add c 1.1.1.3,http
create c6 hash:ip,port family inet6
add c6 fd00::1,icmpv6:128/0
add c6 fd00::1,icmpv6:neighbour-solicitation
create d hash:net,port
add d 10.0.0.0/24,tcp:80 nomatch
add d 10.1.0.0/24,udp:53
create e bitmap:port range 1-1000 comment
add e 80 comment foo
add e 5-7
create l list:set counters comment size 2
add l a
add l b
add l c before b
";

/// Lines without `initval`, and without `forceadd`, which the real tool forgets; elements of a hash in any order.
fn lines(saved: &str) -> Vec<String> {
    let bare = |l: &str| l.split(" initval ").next().unwrap_or(l).replace(" forceadd", "");
    let mut lines: Vec<_> = saved.lines().map(bare).collect();
    lines.sort();
    lines
}

fn lab() -> Option<Lab> {
    let lab = Lab::with_set_up("", &["ipset"])?;
    let done = lab.run(Place::Host, 10, &["ipset", "save"]);
    if done.code != 0 {
        skip(&format!("ipset does not work here: {}", done.stderr));
        return None;
    }
    Some(lab)
}

/// Members of lists cannot be destroyed.
fn clear(lab: &Lab) {
    lab.run(Place::Host, 10, &["ipset", "flush"]).ok();
    lab.run(Place::Host, 10, &["ipset", "destroy"]).ok();
}

/// The same text means the same sets, and what we print is what it prints and reads.
#[test]
fn sets_are_printed_as_the_real_tool_prints_them() {
    let Some(lab) = lab() else { return };
    let restore = |text: &str| lab.run_with(Place::Host, 10, &["ipset", "restore"], text.as_bytes()).ok().to_owned();
    restore(SETS);
    let theirs = lab.run(Place::Host, 10, &["ipset", "save"]).ok().to_owned();
    let ours = Sets::default().restore(SETS, Time::ZERO).unwrap_or_else(|e| panic!("{e}")).print(Time::ZERO);
    assert_eq!(lines(&ours), lines(&theirs));
    let read = Sets::default().restore(&theirs, Time::ZERO).unwrap_or_else(|e| panic!("{e}\n{theirs}"));
    assert_eq!(lines(&read.print(Time::ZERO)), lines(&theirs));
    clear(&lab);
    restore(&ours);
    assert_eq!(lines(lab.run(Place::Host, 10, &["ipset", "save"]).ok()), lines(&theirs));
}

/// What one refuses the other refuses.
#[test]
fn what_the_real_tool_refuses_is_refused() {
    let Some(lab) = lab() else { return };
    // Additions to one set in a row go by the options of the first there, so that of `a` does not stand last.
    let made = "create a hash:ip maxelem 2\ncreate b hash:net\ncreate c hash:ip,port\ncreate e bitmap:port range 1-9\n\
                create l list:set\nadd a 1.1.1.1\nadd l b\n";
    for line in [
        "add a 0.0.0.0",
        "add a 1.1.1.1",
        "add a 1.1.1.1 -exist",
        "add a 1.1.1.256",
        "add a 1.1.1",
        "add a 1.1.1.1/33",
        "add a 1.1.1.1 timeout 5",
        "add a 1.1.1.2 nomatch",
        "add a 1.1.1.1-1.1.1.9 -exist",
        "add a 1.1.1.2 comment x",
        "add b 1.0.0.0/0",
        "add b 0.0.0.0-255.255.255.255",
        "add b 1.1.1.1 nomatch",
        "add c 1.1.1.1",
        "add c 1.1.1.1,foo:5",
        "add c 1.1.1.1,gre:5",
        "add c 1.1.1.1,icmp:foo",
        "add c 1.1.1.1,tcp:0",
        "add e 10",
        "add e 5",
        "add l nix",
        "add l b",
        "add l l",
        "add l c after nix",
        "create a hash:ip",
        "create x hash:ip maxelem 0",
        "create x hash:ip timeout 2147484",
        "create x hash:ip6",
        "create x hash:ip timeout 5 timeout 6",
        "create x hash:ip netmask 33",
        "create x hash:net netmask 24",
        "create x bitmap:port",
        "create x bitmap:port range 5-1",
        "create x list:set family inet",
        "create x hash:ip family inet7",
        "create a hash:ip -exist",
        "create b hash:ip -exist",
        "create nam01234567890123456789012345678 hash:ip",
        "foo bar",
        "# x",
        " add a 7.7.7.7",
        "n nn iphash",
        "-N nn nethash",
        "del a 1.1.1.1",
        "del a 9.9.9.9",
        "del a 9.9.9.9 -exist",
        "flush a",
        "flush nix",
        "destroy b",
        "destroy a",
        "del l b",
        "del l c",
    ] {
        clear(&lab);
        let text = format!("{made}{line}\n");
        let theirs = lab.run_with(Place::Host, 10, &["ipset", "restore"], text.as_bytes());
        let ours = Sets::default().restore(&text, Time::ZERO);
        assert_eq!(ours.is_ok(), theirs.code == 0, "{line}: {ours:?}; {}", theirs.stderr);
    }
}
