//! As an ordinary user, without access to /dev/net/tun.

use crate::kit::{OrdinaryUser, finish, is_root, lives, sandboxes_work, wait_until};
use std::net::{Ipv4Addr, TcpListener};

#[test]
fn an_ordinary_user_gets_a_network_without_tun() {
    if !sandboxes_work("ordinary user") {
        return;
    }
    let user = OrdinaryUser::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut c in listener.incoming().flatten() {
            let _ = c.read(&mut [0; 1024]);
            let _ = c.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello");
        }
    });
    let script = format!("id -u; head -n 1 /etc/resolv.conf; curl -sS -m 10 http://10.0.2.2:{port}/");
    let (code, out, err) =
        finish(&mut user.hibernet(&["run", "--link", "packet", "--map-host-loopback", "10.0.2.2", "--", "sh", "-c", &script]));
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("0\n# by hibernet") && out.ends_with("hello"), "{out}");
    let open_to_all =
        std::fs::metadata("/dev/net/tun").is_ok_and(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o6 == 0o6);
    if is_root() && !open_to_all {
        let (code, _, err) = finish(&mut user.hibernet(&["run", "--link", "tap", "--", "true"]));
        assert!(code == 72 && err.contains("/dev/net/tun"), "{code} {err}");
        // Without a wish the packet link is taken by itself.
        let (code, _, err) = finish(&mut user.hibernet(&["run", "--", "true"]));
        assert_eq!((code, err.as_str()), (0, ""));
    }
}

#[test]
fn an_ordinary_user_has_a_registry_of_its_own() {
    if !sandboxes_work("registry of a user") {
        return;
    }
    let user = OrdinaryUser::new();
    let (code, out, err) = finish(&mut user.hibernet(&["run", "--detach", "--", "sleep", "1000"]));
    assert_eq!(code, 0, "{err}");
    let name = out.trim().to_owned();
    let (_, list, _) = finish(&mut user.hibernet(&["list", "--json"]));
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    assert_eq!(list.len(), 1);
    let pid = list[0]["pid"].as_i64().unwrap() as i32;
    let (code, out, err) = finish(&mut user.hibernet(&["exec", &name, "--", "cat", "/proc/net/fib_trie"]));
    assert!(code == 0 && out.contains("10.0.2.15"), "{err}");
    let (code, _, err) = finish(&mut user.hibernet(&["stats", &name]));
    assert_eq!(code, 0, "{err}");
    if is_root() {
        // The file's mode does not keep root out; the worker does, to which every other user is nobody in particular.
        let socket = user.runtime_dir().join("hibernet").join(format!("{name}.sock"));
        let mut asking = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut asking, &mut answer).unwrap();
        assert!(answer.contains(r#""kind":"denied""#) && answer.contains("sudo -u"), "{answer}");
    }
    assert!(std::process::Command::new("kill").arg(pid.to_string()).status().unwrap().success());
    wait_until("it has ended", || !lives(pid));
    assert_eq!(std::fs::read_dir(user.runtime_dir().join("hibernet")).unwrap().count(), 0);
}

#[test]
fn privileged_ports_are_refused_with_the_remedy() {
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if start.trim().parse().unwrap_or(1024) < 2 || !sandboxes_work("privileged ports") {
        return;
    }
    let user = OrdinaryUser::new();
    let (code, _, err) = finish(&mut user.hibernet(&["run", "-p", "127.0.0.1:1:80", "--", "true"]));
    assert!(code == 73 && err.contains("ip_unprivileged_port_start"), "{code} {err}");
}

/// Somebody else's sandboxes are not to be entered.
#[test]
fn the_registry_of_another_user_is_closed() {
    if !is_root() || !sandboxes_work("registry of another") {
        return;
    }
    let user = OrdinaryUser::new();
    let mut c = user.hibernet(&["list", "--json"]);
    // Root's directory of that name is not this user's.
    let (code, out, err) = finish(c.env("XDG_RUNTIME_DIR", "/run"));
    assert_eq!((code, out.trim()), (0, "[]"), "{err}");
}
