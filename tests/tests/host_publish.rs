//! Published ports: real servers in a sandbox, clients outside.

use hibernet_tests::lab::{Done, Family, GATEWAY4, GATEWAY6, HOST4, Lab, Place, Sandbox, bracketed, find_program, wait_until};
use std::fmt::Write as _;
use std::time::Duration;

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// 200 clients fetch a file through port 8080 at once; every byte must be right.
fn two_hundred_clients(lab: &Lab, family: Family, content: &str) {
    let url = format!("http://{}:8080/page?[1-200]", bracketed(family.host()));
    let fetch = format!(
        "mkdir -p got && rm -f got/* && curl -sS --parallel --parallel-immediate --parallel-max 200 --max-time 60 \
         -o 'got/#1' -w '%{{http_code}}\\n' '{url}' | sort | uniq -c && cat got/* | sha256sum && ls got | wc -l"
    );
    let done = lab.sh(Place::Remote, 90, &fetch);
    let all = lab.sh(Place::Host, 30, &format!("for i in $(seq 200); do cat {content}; done | sha256sum"));
    let lines: Vec<_> = done.ok().lines().map(str::trim).collect();
    assert_eq!(lines, ["200 200", all.ok(), "200"], "{done}");
    eprintln!("{family:?}: 200 clients served in {:?}", done.took);
}

fn page(lab: &Lab) -> (String, String) {
    let dir = lab.path("www");
    std::fs::create_dir_all(&dir).expect("directory");
    let mut text = String::new();
    for n in 0..20_000 {
        writeln!(text, "line {n}").expect("string");
    }
    let file = format!("{dir}/page");
    std::fs::write(&file, text).expect("file");
    (dir, file)
}

#[test]
fn pythons_http_server_for_two_hundred_clients() {
    let Some(lab) = Lab::new(&["python3", "curl", "sha256sum"]) else { return };
    let (dir, file) = page(&lab);
    let sandbox = Sandbox::start(&lab, &["-p", "8080:8000"]);
    for family in Family::BOTH {
        // The module's own command has a backlog of 5, with which 200 clients at once fail without any network between, too.
        let argv = lab.peer("http_store.py", &[&dir, family.any(), "8000"]);
        let _server = sandbox.serve(8000, &strings(&argv));
        two_hundred_clients(&lab, family, &file);
    }
}

#[test]
fn nginx_for_two_hundred_clients() {
    let Some(lab) = Lab::new(&["nginx", "curl", "sha256sum"]) else { return };
    let (dir, file) = page(&lab);
    let w = lab.path("nginx");
    std::fs::create_dir_all(&w).expect("directory");
    let config = format!(
        "user root; pid {w}/pid; error_log stderr; events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {w}/a; proxy_temp_path {w}/b; fastcgi_temp_path {w}/c;\n\
         uwsgi_temp_path {w}/d; scgi_temp_path {w}/e;\n\
         server {{ listen 8000; listen [::]:8000; root {dir}; }} }}\n"
    );
    std::fs::write(format!("{w}/conf"), config).expect("configuration");
    let sandbox = Sandbox::start(&lab, &["-p", "8080:8000"]);
    let _server = sandbox.serve(8000, &["nginx", "-p", &w, "-c", &format!("{w}/conf"), "-e", "stderr", "-g", "daemon off;"]);
    for family in Family::BOTH {
        two_hundred_clients(&lab, family, &file);
    }
}

#[test]
fn redis_through_a_published_port() {
    let Some(lab) = Lab::new(&["redis-server", "redis-benchmark", "redis-cli"]) else { return };
    let sandbox = Sandbox::start(&lab, &["-p", "6380:6379"]);
    let w = lab.dir().to_string_lossy().into_owned();
    let _server = sandbox.serve(
        6379,
        &["redis-server", "--port", "6379", "--save", "", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--dir", &w],
    );
    std::fs::write(lab.path("value"), "0123456789abcdef".repeat(512 << 10)).expect("file");
    for family in Family::BOTH {
        let to = ["-h", family.host(), "-p", "6380"];
        let mut argv = vec!["redis-benchmark"];
        argv.extend(to);
        argv.extend(["-n", "20000", "-c", "50", "-t", "ping,set,get,lpush", "-d", "512", "--csv"]);
        let done = lab.run(Place::Remote, 60, &argv);
        let rows = done.ok().lines().filter(|l| l.starts_with('"') && !l.contains("\"test\"")).count();
        assert_eq!(rows, 5, "two kinds of PING, SET, GET, LPUSH: {done}");
        let script = format!(
            "redis-cli -h {h} -p 6380 -x set big <value && redis-cli -h {h} -p 6380 --raw get big | head -c -1 | cmp - value && echo same",
            h = family.host()
        );
        assert!(lab.sh(Place::Remote, 60, &script).ok().ends_with("same"));
    }
}

#[test]
fn git_over_a_published_port() {
    let Some(lab) = Lab::new(&["git"]) else { return };
    // A repository with some history and 20 MiB that do not compress.
    lab.sh(
        Place::Host,
        60,
        "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
         git init -q repo && cd repo && head -c 20M /dev/urandom >big && git add big && git commit -qm one \
         && git config daemon.receivepack true && git config receive.denyCurrentBranch ignore && git config http.receivepack true",
    )
    .ok();
    let sandbox = Sandbox::start(&lab, &["-p", "9419:9418"]);
    let base = lab.dir().to_string_lossy().into_owned();
    let _server = sandbox.serve(
        9418,
        &[
            "git",
            "-c",
            "safe.directory=*",
            "daemon",
            "--export-all",
            "--enable=receive-pack",
            &format!("--base-path={base}"),
            "--reuseaddr",
        ],
    );
    for family in Family::BOTH {
        let script = format!(
            "export HOME={base} GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
             git config --global safe.directory '*'
             rm -rf clone && git clone -q git://{}:9419/repo clone && cmp clone/big repo/big && cd clone \
             && head -c 5M /dev/urandom >new-{family:?} && git add . && git commit -qm two && git push -q origin HEAD \
             && test $(git rev-parse HEAD) = $(git -C ../repo rev-parse HEAD) && echo pushed",
            bracketed(family.host())
        );
        let done = lab.sh(Place::Remote, 60, &script);
        assert!(done.ok().ends_with("pushed"), "{done}");
    }
}

#[test]
fn ssh_and_git_over_ssh_out_of_a_sandbox() {
    let Some(lab) = Lab::new(&["ssh", "sshd", "ssh-keygen", "git"]) else { return };
    if !lab.is_root() {
        hibernet_tests::lab::skip("sshd separates privileges, which needs more than one user");
        return;
    }
    let w = lab.dir().to_string_lossy().into_owned();
    let sshd = find_program("sshd").expect("sshd").to_string_lossy().into_owned();
    lab.sh(
        Place::Remote,
        20,
        "ssh-keygen -q -t ed25519 -N '' -f hostkey && ssh-keygen -q -t ed25519 -N '' -f id && mkdir -m 700 -p keys \
         && cp id.pub keys/authorized && git init -q --bare bare.git",
    )
    .ok();
    let config = format!(
        "HostKey {w}/hostkey\nAuthorizedKeysFile {w}/keys/authorized\nStrictModes no\nPermitRootLogin yes\n\
         UsePAM no\nPidFile none\nPasswordAuthentication no\n"
    );
    std::fs::write(lab.path("sshd_config"), config).expect("configuration");
    let mut server = lab.spawn(Place::Remote, &[&sshd, "-D", "-e", "-p", "2222", "-f", &lab.path("sshd_config")]);
    lab.wait_listening(Place::Remote, 2222, &mut server);
    let sandbox = Sandbox::start(&lab, &[]);
    for family in Family::BOTH {
        let ssh = format!(
            "ssh -F none -i {w}/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -p 2222"
        );
        let done = sandbox.sh(30, &format!("head -c 20M /dev/zero | {ssh} root@{} 'wc -c; exit 3'", family.remote()));
        assert_eq!((done.code, done.stdout.trim()), (3, "20971520"), "{done}");
        let done = sandbox.sh(
            30,
            &format!(
                "export HOME={w} GIT_SSH_COMMAND='{ssh}' GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
                 git config --global safe.directory '*'; cd {w} && rm -rf c && git clone -q ssh://root@{}{w}/bare.git c && cd c \
                 && head -c 5M /dev/urandom >f{family:?} && git add . && git commit -qm x && git push -q origin HEAD && echo pushed",
                bracketed(family.remote())
            ),
        );
        assert!(done.ok().ends_with("pushed"), "{done}");
    }
}

/// One case of podman's forwarding matrix.
struct Case {
    name: &'static str,
    /// What is published, without the protocol; `ADDR` stands for the host's address.
    spec: &'static str,
    /// Host ports tried, and the guest ports to which they must lead.
    ports: &'static [(u16, u16)],
    /// A host port beside them that must be closed.
    closed: u16,
}

const CASES: &[Case] = &[
    Case { name: "single", spec: "5000:5000", ports: &[(5000, 5000)], closed: 5001 },
    Case { name: "range", spec: "5000-5002:5000", ports: &[(5000, 5000), (5001, 5001), (5002, 5002)], closed: 5003 },
    Case { name: "translated", spec: "5000:6000", ports: &[(5000, 6000)], closed: 6000 },
    Case { name: "translated range", spec: "5000-5002:6000", ports: &[(5000, 6000), (5001, 6001), (5002, 6002)], closed: 4999 },
    Case { name: "address-bound", spec: "ADDR:5000:5000", ports: &[(5000, 5000)], closed: 5001 },
];

/// Asks the echo server behind a host port; `None` if nobody answers.
fn ask(lab: &Lab, from: Place, proto: &str, addr: &str, port: u16) -> (Done, Option<String>) {
    let script = if proto == "tcp" {
        format!("printf hello | nc -N -w 3 {addr} {port}")
    } else {
        format!("printf hello | socat -t 1 -T 1 - UDP:{}:{port}", bracketed(addr))
    };
    let done = lab.sh(from, 10, &script);
    let answer = Some(done.stdout.trim().to_owned()).filter(|a| !a.is_empty());
    (done, answer)
}

fn matrix(proto: &str, family: Family) {
    let Some(lab) = Lab::new(&["python3", "nc", "socat"]) else { return };
    lab.sh(Place::Host, 5, "ip addr add 10.99.0.3/24 dev up0; ip addr add fd99::3/64 dev up0 nodad").ok();
    let other = if family == Family::V4 { "10.99.0.3" } else { "fd99::3" };
    for case in CASES {
        let spec = format!("{}/{proto}", case.spec.replace("ADDR", &bracketed(family.host())));
        let sandbox = Sandbox::start(&lab, &["-p", &spec]);
        let ports: Vec<String> = (5000..5004).chain(6000..6003).map(|p: u16| p.to_string()).collect();
        let mut args = vec![proto, family.any()];
        args.extend(ports.iter().map(String::as_str));
        let server = sandbox.spawn(&strings(&lab.peer("echo.py", &args)));
        wait_until("the servers are ready", Duration::from_secs(20), || server.output().contains("ready"));
        for &(host, guest) in case.ports {
            // The guest sees the real client, and its own address.
            let (done, answer) = ask(&lab, Place::Remote, proto, family.host(), host);
            let answer = answer.unwrap_or_else(|| panic!("{}: no answer at {host}: {done}", case.name));
            let words: Vec<_> = answer.split(' ').collect();
            assert_eq!((words[0], words[1]), (&*guest.to_string(), family.remote()), "{}: {answer}", case.name);
            assert_eq!(words[4], "hello", "{}: {answer}", case.name);
            if proto == "tcp" {
                assert_eq!(words[3], family.guest(), "{}: {answer}", case.name);
            }
        }
        let (done, answer) = ask(&lab, Place::Remote, proto, family.host(), case.closed);
        assert_eq!(answer, None, "{}: port {} must be closed: {done}", case.name, case.closed);
        let (done, answer) = ask(&lab, Place::Remote, proto, other, 5000);
        assert_eq!(answer.is_none(), case.name == "address-bound", "{}: at another address: {done}", case.name);
        // From the host itself: the client appears as the gateway.
        let at = if case.name == "address-bound" { family.host() } else { family.loopback() };
        let (done, answer) = ask(&lab, Place::Host, proto, at, case.ports[0].0);
        let answer = answer.unwrap_or_else(|| panic!("{}: no answer from the host itself: {done}", case.name));
        let gateway = if family == Family::V4 { GATEWAY4 } else { GATEWAY6 };
        assert_eq!(answer.split(' ').nth(1), Some(gateway), "{}: {answer}", case.name);
    }
}

#[test]
fn forwarding_matrix_tcp_v4() {
    matrix("tcp", Family::V4);
}

#[test]
fn forwarding_matrix_tcp_v6() {
    matrix("tcp", Family::V6);
}

#[test]
fn forwarding_matrix_udp_v4() {
    matrix("udp", Family::V4);
}

#[test]
fn forwarding_matrix_udp_v6() {
    matrix("udp", Family::V6);
}

#[test]
fn nothing_listens_unless_published() {
    let Some(lab) = Lab::new(&[]) else { return };
    let sandbox = Sandbox::start(&lab, &[]);
    let listeners = "cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 | grep -v local_address | wc -l";
    assert_eq!(lab.sh(Place::Host, 5, listeners).ok(), "0");
    drop(sandbox);
}

#[test]
fn a_published_port_without_a_server_is_reset() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let _sandbox = Sandbox::start(&lab, &["-p", "8080:80"]);
    // The host's kernel accepts before the guest is asked, so the client sees a reset, not a refusal.
    let script = format!(
        "python3 -c \"import socket, time\nbegan = time.monotonic()\ntry:\n s = socket.create_connection(('{HOST4}', 8080), 5)\n \
         s.settimeout(5)\n print(len(s.recv(1)), 'bytes')\nexcept ConnectionResetError:\n print('reset', \
         'soon' if time.monotonic() - began < 2 else 'late')\""
    );
    let done = lab.sh(Place::Remote, 20, &script);
    assert_eq!(done.ok(), "reset soon", "{done}");
}

#[test]
fn big_datagrams_through_a_published_port() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let sandbox = Sandbox::start(&lab, &["-p", "7000:7000/udp"]);
    for family in Family::BOTH {
        let server = sandbox.spawn(&strings(&lab.peer("echo.py", &["udp", family.any(), "7000"])));
        wait_until("the server is ready", Duration::from_secs(20), || server.output().contains("ready"));
        // 60,000 bytes: fragments outside, one packet inside. An answer that is too long for the path finds out how long one
        // may be, as behind any router; the client asks again.
        let script = format!(
            "python3 -c \"import socket\ns = socket.socket(socket.AF_INET{six}, socket.SOCK_DGRAM)\ns.settimeout(1)\n\
             for n in (0, 1, 1300, 1473, 9000, 60000):\n for turn in range(3):\n  s.sendto(bytes([n % 251]) * n, ('{to}', 7000))\n  \
             try:\n   got = s.recv(65535).split(b' ', 4)\n   break\n  except TimeoutError:\n   got = [b''] * 5\n \
             print(n, turn, got[4] == bytes([n % 251]) * n)\"",
            six = if family == Family::V6 { "6" } else { "" },
            to = family.host()
        );
        let done = lab.sh(Place::Remote, 40, &script);
        assert_eq!(done.ok().lines().filter(|l| l.ends_with("True")).count(), 6, "{family:?}: {done}");
    }
}
