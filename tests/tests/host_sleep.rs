//! Networks that sleep with their connections held: what wakes them, what does not, and what it costs. Real programs and kernels.

use hibernet_tests::lab::{Lab, Place, Proc, REMOTE4, Sandbox, wait_until};
use std::collections::HashMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 9000;
const ASK_UDP: &str = "python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); \
                       s.sendto(b\"hello\", (\"10.99.0.2\", 7000)); print(s.recv(100).decode())'";

fn strings(argv: &[String]) -> Vec<&str> {
    argv.iter().map(String::as_str).collect()
}

/// A sandbox named `s` with connections to a server in the namespace *remote*.
struct World<'a> {
    lab: &'a Lab,
    guest: Proc,
    server: Proc,
    sandbox: Sandbox<'a>,
}

impl<'a> World<'a> {
    fn new(lab: &'a Lab, connections: usize, options: &[&str]) -> World<'a> {
        for fifo in ["guest", "server"] {
            lab.run(Place::Host, 5, &["mkfifo", &lab.path(fifo)]).ok();
        }
        let (port, count) = (PORT.to_string(), connections.to_string());
        let server = lab.peer("held.py", &["server", &port, &lab.path("server")]);
        let server = lab.serve(Place::Remote, PORT, &strings(&server));
        let sandbox = Sandbox::start(lab, &[&["--name", "s"], options].concat());
        let guest = lab.peer("held.py", &["client", REMOTE4, &port, &count, &lab.path("guest")]);
        let guest = sandbox.spawn(&strings(&guest));
        wait_until("all are connected", SOON, || guest.output().contains(&format!("open {count}\n")));
        World { lab, guest, server, sandbox }
    }

    /// Has the server do something.
    fn server(&self, order: &str) {
        std::fs::write(self.lab.path("server"), format!("{order}\n")).expect("the server reads");
    }

    fn guest(&self, order: &str) {
        std::fs::write(self.lab.path("guest"), format!("{order}\n")).expect("the guest reads");
    }

    fn guest_says(&self, line: &str) {
        wait_until(line, SOON, || self.guest.output().lines().any(|l| l == line));
    }

    fn server_says(&self, line: &str) {
        wait_until(line, SOON, || self.server.output().lines().any(|l| l.starts_with(line)));
    }

    /// Waits until nothing is under way, then puts it to sleep.
    fn sleep(&self, options: &[&str]) {
        self.lab.hibernet(20, &["idle", "s", "--after", "300ms", "--timeout", "15"]).ok();
        self.sleep_at_once(options);
    }

    fn sleep_at_once(&self, options: &[&str]) {
        self.lab.hibernet(20, &[&["checkpoint", "s", "s.img"], options].concat()).ok();
    }

    fn wake(&self) {
        self.lab.hibernet(20, &["restore", "s.img"]).ok();
    }

    /// What `wait` prints; `None` if nothing comes for some time.
    fn wait(&self, options: &[&str]) -> Option<String> {
        let done = self.lab.hibernet(20, &[&["wait", "s", "--timeout", "1"], options].concat());
        if done.code == 4 { None } else { Some(done.ok().to_owned()) }
    }

    fn wakes_with(&self, start: &str) {
        let news = self.wait(&[]).unwrap_or_else(|| panic!("nothing instead of {start}"));
        assert!(news.starts_with(start), "{news}");
    }

    /// Of the supervisor.
    fn status(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.sandbox.supervisor.pid())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with(key)).expect("a line");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }

    fn is_asleep(&self) -> bool {
        self.lab.hibernet(5, &["list"]).ok().contains("asleep")
    }

    /// Host sockets of connections that the kernel keeps alive.
    fn kept_alive(&self) -> usize {
        let filter = format!("dport = :{PORT}");
        let table = self.lab.run(Place::Host, 5, &["ss", "-Htno", "state", "established", &filter]);
        table.ok().lines().filter(|l| l.contains("timer:(keepalive")).count()
    }
}

#[test]
fn a_thousand_held_connections_and_the_first_byte() {
    const N: usize = 1000;
    let Some(lab) = Lab::new(&["python3", "ss"]) else { return };
    let w = World::new(&lab, N, &[]);
    let before = w.status("VmRSS:");
    let command = format!("echo ran 0 >server; {} restore \"$HIBERNET_IMAGE\" >/dev/null", lab.binary());
    let (mut waits, mut bare): (Vec<u64>, Vec<u64>) = Default::default();
    for turn in 0..9 {
        w.sleep(&["--wake-exec", &command]);
        if turn == 0 {
            let asleep = w.status("VmRSS:");
            eprintln!("{before} KiB resident awake, {asleep} KiB with {N} connections held");
            assert!(asleep < before + (4 << 10), "{before} KiB resident awake, {asleep} KiB with {N} connections held");
            assert_eq!(w.kept_alive(), N);
            // The server asks every second whether the clients are there.
            let wake_ups = w.status("voluntary_ctxt_switches:");
            std::thread::sleep(Duration::from_secs(5));
            assert_eq!(w.status("voluntary_ctxt_switches:"), wake_ups, "wake-ups while nothing happened");
            assert!(w.is_asleep());
        }
        let n = turn * 100 + 7;
        w.server(&format!("send {n}"));
        w.guest_says(&format!("{n} got x"));
        let said = w.server.output();
        let at = |what: &str| said.lines().filter_map(|l| l.strip_prefix(what)?.parse::<u64>().ok()).collect::<Vec<_>>();
        let (sent, ran) = (at(&format!("sent {n} ")), at("ran 0 "));
        assert_eq!((sent.len(), ran.len()), (1, turn + 1), "the command runs once a sleep");
        waits.push(ran[turn].saturating_sub(sent[0]) / 1000);
        w.server(&format!("bare {}", turn + 1));
        let shell = format!("ran {} ", turn + 1);
        w.server_says(&shell);
        let said = w.server.output();
        let at = |what: &str| said.lines().filter_map(|l| l.strip_prefix(what)?.parse::<u64>().ok()).next_back().expect("a time");
        bare.push(at(&shell).saturating_sub(at("bare ")) / 1000);
    }
    assert_eq!(w.kept_alive(), 0, "options are what they were before the sleep");
    waits.sort_unstable();
    bare.sort_unstable();
    eprintln!("from the byte to what the command does first: {waits:?} us; a shell alone takes {bare:?} us");
    // Where others use the machine, a shell alone may take longer.
    let (wait, limit) = (waits[waits.len() / 2], 5000.max(2 * bare[bare.len() / 2]));
    assert!(wait < limit, "{waits:?} us from the byte to the command; {bare:?} us for a shell alone");
    // The others have seen nothing of it, and go on.
    let mut seen: HashMap<String, usize> = HashMap::new();
    for l in w.guest.output().lines().filter(|l| !l.starts_with("open")) {
        *seen.entry(l.split_once(' ').expect("two words").1.to_owned()).or_default() += 1;
    }
    assert_eq!(seen, HashMap::from([("got x".into(), 9)]));
    w.guest("send 999");
    w.server_says("999 got x");
}

#[test]
fn ends_of_connections_wake_and_are_seen_afterwards() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let w = World::new(&lab, 4, &[]);
    for (order, seen) in [("close 1", "1 end"), ("reset 2", "2 reset")] {
        w.sleep(&[]);
        assert_eq!(w.wait(&[]), None);
        w.server(order);
        w.wakes_with("readable: tcp 10.0.2.15:");
        assert_eq!(w.wait(&["--for", "accept"]), None);
        w.wake();
        w.guest_says(seen);
    }
    // An end that the guest knows is no news, however readable the socket is; that its other direction is reset is.
    w.sleep(&[]);
    assert_eq!(w.wait(&[]), None);
    w.server("reset 1");
    w.wakes_with("readable: tcp 10.0.2.15:");
    w.wake();
    w.server("send 3");
    w.guest_says("3 got x");
}

#[test]
fn what_waits_already_wakes_at_once() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let w = World::new(&lab, 2, &[]);
    // What the guest has had is not waiting any more.
    w.server("send 0");
    w.guest_says("0 got x");
    w.sleep(&[]);
    assert_eq!(w.wait(&[]), None);
    w.wake();
    lab.hibernet(5, &["pause", "s"]).ok();
    w.server("send 1");
    w.server_says("sent 1");
    w.sleep_at_once(&[]);
    w.wakes_with("readable: tcp 10.0.2.15:");
    w.wake();
    w.guest_says("1 got x");
}

#[test]
fn clients_of_published_ports_wake() {
    let Some(lab) = Lab::new(&["python3", "nc"]) else { return };
    let w = World::new(&lab, 1, &["-p", "8080:8080", "-p", "7000:7000/udp"]);
    let udp = w.sandbox.spawn(&strings(&lab.peer("echo.py", &["udp", "0.0.0.0", "7000"])));
    let tcp = w.sandbox.spawn(&strings(&lab.peer("echo.py", &["tcp", "0.0.0.0", "8080"])));
    wait_until("servers are ready", SOON, || [&udp, &tcp].iter().all(|s| s.output().contains("ready")));
    let command = format!("{} restore s.img >/dev/null; echo $HIBERNET_NAME $HIBERNET_FLOW >>woken", lab.binary());
    let clients = [("tcp", "accept", "8080", "printf hello | nc -N -w 20 10.99.0.2 8080"), ("udp", "udp", "7000", ASK_UDP)];
    for (turn, (proto, event, port, ask)) in clients.into_iter().enumerate() {
        // They wait before it sleeps, several at a time.
        let mut waiting = ["1", "2", "3"].map(|_| lab.spawn_hibernet(&["wait", "s", "--for", event]));
        let mut other = lab.spawn_hibernet(&["wait", "s", "--for", "readable"]);
        w.sleep(&["--wake-exec", &command]);
        assert!(waiting.iter_mut().all(Proc::running));
        let done = lab.sh(Place::Remote, 30, ask);
        assert!(done.ok().starts_with(port) && done.ok().ends_with("hello"), "{done}");
        for p in &mut waiting {
            assert_eq!(p.wait(SOON), 0);
            assert_eq!(p.output().trim(), format!("{event}: {proto} 0.0.0.0:{port} (published)"));
        }
        assert!(other.running(), "{}", other.output());
        let woken = || std::fs::read_to_string(lab.path("woken")).unwrap_or_default();
        wait_until("the command is done", SOON, || woken().lines().count() == turn + 1);
        assert_eq!(woken().lines().last(), Some(&*format!("s {proto} 0.0.0.0:{port} (published)")));
        assert!(!w.is_asleep());
    }
}

#[test]
fn a_command_that_fails_is_said_and_not_run_again() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let w = World::new(&lab, 2, &[]);
    w.sleep(&["--wake-exec", "echo ran >>ran; exit 7"]);
    w.server("send 0");
    wait_until("it is said", SOON, || w.sandbox.supervisor.output().contains("failed with status 7; it is not run again"));
    w.server("send 1");
    w.server_says("sent 1");
    assert_eq!(std::fs::read_to_string(lab.path("ran")).expect("it ran"), "ran\n");
    w.wakes_with("readable: ");
    w.wake();
    w.guest_says("0 got x");
    w.guest_says("1 got x");
}

#[test]
fn who_waits_for_an_answer_is_not_idle() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let w = World::new(&lab, 3, &[]);
    let idle = |after: &str| lab.hibernet(20, &["idle", "s", "--after", after, "--timeout", "5", "--json"]);
    // The server's keep-alives do not count.
    assert!(idle("3s").ok().contains("idle_ns"));
    w.guest("send 2");
    w.server_says("2 got x");
    assert_eq!(idle("300ms").code, 4);
    w.server("send 2");
    w.guest_says("2 got x");
    idle("300ms").ok();
    // Asleep it is not idle either, so that a loop puts it to sleep again only when it was awake.
    let mut waiting = lab.spawn_hibernet(&["idle", "s", "--after", "2s"]);
    w.sleep(&[]);
    assert_eq!(idle("300ms").code, 4);
    assert!(waiting.running());
    w.wake();
    assert_eq!(waiting.wait(SOON), 0);
}

#[test]
fn a_guest_that_sends_into_the_sleep_is_patient() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    // By itself its kernel would give up after three attempts: some three seconds.
    let w = World::new(&lab, 1, &[]);
    w.sandbox.sh(5, "echo 3 >/proc/sys/net/ipv4/tcp_retries2").ok();
    let retries = || w.sandbox.sh(5, "cat /proc/sys/net/ipv4/tcp_retries2").ok().to_owned();
    let retransmissions = || {
        let script = "awk '/^Tcp:/ && n++ { print $13 }' /proc/self/net/snmp";
        w.sandbox.sh(5, script).ok().parse::<u64>().expect("a number")
    };
    assert_eq!(retries(), "3");
    w.sleep(&[]);
    assert_eq!(retries(), "255");
    let before = retransmissions();
    w.guest("send 0");
    // The seventh comes 25 seconds after the first; with the setting of before the fourth never would.
    wait_until("it has tried more often than it would", Duration::from_secs(60), || retransmissions() >= before + 7);
    // Nothing of that is news for the sandbox: it sends, and nobody answers.
    assert_eq!(w.wait(&[]), None);
    w.wake();
    w.server_says("0 got x");
    assert_eq!(retries(), "3");
    w.server("send 0");
    w.guest_says("0 got x");
}
