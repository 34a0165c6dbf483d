//! The host's resolver configuration: covered in the sandbox, followed outside.

use crate::kit::{finish, sandboxes_work};
use std::process::Command;
use vmm_sys_util::tempdir::TempDir;

/// Runs a script in a mount namespace whose /etc holds nothing but what the script puts there. `$D` is a directory, `$H` is
/// hibernet.
fn with_own_etc(script: &str) -> (i32, String, String) {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().to_str().unwrap();
    let script = format!("mkdir $D/etc && mount --bind $D/etc /etc && {script}");
    finish(Command::new("unshare").args(["-Urm", "sh", "-ec", &script]).env("D", path).env("H", env!("CARGO_BIN_EXE_hibernet")))
}

const RUN: &str = "$H run --name $(basename $D) --log-level info --log-file $D/log -- \
    timeout 60 sh -c 'cat /etc/resolv.conf; : >$D/ready; until [ -e $D/done ]; do sleep 0.02; done; \
    until grep -q 10.0.2.3 /etc/resolv.conf; do sleep 0.02; done; cat /etc/resolv.conf' & p=$!; \
    until [ -e $D/ready ]; do kill -0 $p; sleep 0.02; done; ";

/// Waits until the log tells of a change to the address in `$A`.
const SEEN: &str = "n=0; until grep -q \"changed.*$A\" $D/log; do n=$((n+1)); [ $n -lt 1000 ]; kill -0 $p; sleep 0.02; done; ";

#[test]
fn changes_are_followed_however_the_file_is_replaced() {
    if !sandboxes_work("resolver") {
        return;
    }
    let ways = [
        ("written", "echo nameserver 192.0.2.1 >/etc/resolv.conf", "echo nameserver $A >/etc/resolv.conf"),
        ("renamed", "echo nameserver 192.0.2.1 >/etc/resolv.conf", "echo nameserver $A >/etc/new; mv /etc/new /etc/resolv.conf"),
        (
            "behind a link",
            "mkdir $D/stub; echo nameserver 192.0.2.1 >$D/stub/real; ln -s $D/stub/real /etc/resolv.conf",
            "echo nameserver $A >$D/stub/new; mv $D/stub/new $D/stub/real",
        ),
        (
            "another link",
            "mkdir $D/a $D/b; echo nameserver 192.0.2.1 >$D/a/real; ln -s $D/a/real /etc/resolv.conf",
            "echo nameserver $A >$D/b/real; ln -sfn $D/b/real /etc/resolv.conf",
        ),
    ];
    for (way, make, change) in ways {
        let script = format!("{make}; {RUN} A=192.0.2.2; {change}; {SEEN} A=192.0.2.3; {change}; {SEEN} touch $D/done; wait $p");
        let (code, out, err) = with_own_etc(&script);
        assert_eq!(code, 0, "{way}: {out} {err}");
        assert!(out.matches("nameserver 10.0.2.3").count() == 2 && !out.contains("192.0.2."), "{way}: {out}");
    }
}

#[test]
fn the_search_list_is_passed_on() {
    if !sandboxes_work("search list") {
        return;
    }
    let make = "printf 'search a.example b.example\\nnameserver 192.0.2.1\\n' >/etc/resolv.conf";
    let (code, out, err) = with_own_etc(&format!("{make}; $H run -- cat /etc/resolv.conf; cat /etc/resolv.conf"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.matches("search a.example b.example").count(), 2, "{out}");
    assert!(out.ends_with("nameserver 192.0.2.1\n"), "the host's own file was changed: {out}");
}

#[test]
fn a_host_without_the_file_is_told() {
    if !sandboxes_work("no resolv.conf") {
        return;
    }
    let (code, _, err) = with_own_etc("exec $H run -- true");
    assert!(code == 71 && err.contains("--no-resolv-conf"), "{code} {err}");
    let (code, _, err) = with_own_etc("exec $H run --no-resolv-conf -- true");
    assert_eq!((code, err.as_str()), (0, ""));
}
