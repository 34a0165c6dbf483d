//! `hibernet rules check`: canonical form, or what is wrong and where.

use crate::kit::{finish, hibernet};
use std::io::Write;
use std::process::Stdio;

fn check(args: &[&str], text: &[u8]) -> (i32, String, String) {
    let mut c = hibernet(&["rules", "check"]);
    let mut child = c.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A text that is too long is not read to its end.
    let _ = child.stdin.take().unwrap().write_all(text);
    crate::kit::parts(child.wait_with_output().unwrap())
}

#[test]
fn the_canonical_form_is_printed() {
    let text = b"* filter\n:INPUT DROP\n-A INPUT -p tcp --dport 22 -s 10.1.2.3 -j ACCEPT\nCOMMIT\n";
    let canonical = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                     -A INPUT -s 10.1.2.3/32 -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n";
    for args in [&[][..], &["-"]] {
        assert_eq!(check(args, text), (0, canonical.to_owned(), String::new()));
    }
    assert_eq!(check(&[], canonical.as_bytes()), (0, canonical.to_owned(), String::new()));
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/rules");
    for (file, args) in [("agent4.rules", &[][..]), ("agent6.rules", &["--v6"])] {
        let (code, out, err) = finish(hibernet(&["rules", "check"]).args(args).arg(format!("{samples}/{file}")));
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(check(args, out.as_bytes()), (0, out, String::new()));
    }
}

#[test]
fn mistakes_are_told_with_their_place() {
    let cases: &[(&str, i32, &[&str])] = &[
        ("*filter\n-A INPUT -p tcp --dport 99999 -j ACCEPT\nCOMMIT\n", 2, &["standard input:2:25: ", "99999"]),
        ("*filter\n-A INPUT -m sett --match-set a src\nCOMMIT\n", 2, &["input:2:13: ", "sett"]),
        ("*filter\n-A NOWHERE -j DROP\nCOMMIT\n", 1, &["input:2:4: ", "NOWHERE"]),
        ("*filter\n-A INPUT -j DROP\n", 1, &["COMMIT"]),
        ("*filter\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-A B -j A\n-A INPUT -j A\nCOMMIT\n", 1, &["filter", "leads back"]),
        (
            "*nat\n# DROP has no place here.\n-A PREROUTING -j ACCEPT\n-A PREROUTING -j SNAT --to-source 1.2.3.4\nCOMMIT\n",
            1,
            &["input:4:1: ", "SNAT"],
        ),
        ("*filter\n-A INPUT -d fe80::1 -j DROP\nCOMMIT\n", 2, &["input:2:13: ", "fe80::1"]),
    ];
    for (text, status, words) in cases {
        let (code, out, err) = check(&[], text.as_bytes());
        assert_eq!((code, out.as_str(), err.lines().count()), (*status, "", 1), "{text}{err}");
        assert!(words.iter().all(|w| err.contains(w)), "{words:?}: {err}");
    }
    let (code, _, err) = check(&[], b"*filter\n# \xff\nCOMMIT\n");
    assert!(code == 77 && err.contains("input:2:3: "), "{code} {err}");
    let (code, _, err) = check(&[], &vec![b'#'; 3 << 20]);
    assert!(code == 77 && err.contains("more than"), "{code} {err}");
    let (code, _, err) = finish(&mut hibernet(&["rules", "check", "/nonexistent/rules"]));
    assert!(code == 77 && err.contains("/nonexistent/rules"), "{code} {err}");
}
