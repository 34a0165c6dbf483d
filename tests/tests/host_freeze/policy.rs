//! Tier *hold*: today's rules over an image of yesterday.

use crate::kit::*;
use hibernet_tests::lab::{Family, Lab, Place, Proc, Sandbox, wait_until};

fn allow(ports: &str) -> String {
    format!(
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         -A FORWARD -p tcp -m multiport --dports {ports} -j ACCEPT\n-A FORWARD -j REJECT\nCOMMIT\n"
    )
}

struct World {
    lab: Lab,
    rules: [String; 2],
}

impl World {
    fn new() -> Option<World> {
        let lab = Lab::new(&["python3"])?;
        let rules = [("old", "444,445,446"), ("new", "445")].map(|(name, ports)| {
            let path = lab.path(name);
            std::fs::write(&path, allow(ports)).expect("file");
            path
        });
        Some(World { lab, rules })
    }

    /// A sandbox under the old rules, with a connection to port 444 and one to 445 in each family.
    fn start(&self) -> (Sandbox<'_>, Vec<Proc>, Vec<Proc>) {
        let old = &self.rules[0];
        let s = Sandbox::start(&self.lab, &["--name", NAME, "--rules", old, "--rules6", old]);
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            for port in ["444", "445", "446"] {
                let server =
                    self.lab.spawn(Place::Remote, &strings(&self.lab.peer("hold.py", &["serve", family.remote(), port])));
                wait_until("the server is ready", SOON, || server.output().contains("ready"));
                servers.push(server);
                if port == "446" {
                    continue;
                }
                let client = s.spawn(&strings(&self.lab.peer("hold.py", &[family.remote(), port])));
                wait_until("it is connected", SOON, || client.output().contains("connected"));
                clients.push(client);
            }
        }
        (s, servers, clients)
    }

    /// Sleeps; a client calls port 446 meanwhile, which is allowed until now; wakes under the new rules.
    fn through(&self, s: &Sandbox<'_>, recheck: &str) -> serde_json::Value {
        let image = self.lab.path("image");
        sleep(s, &self.lab, &image, &[]);
        let calls: Vec<_> = Family::BOTH
            .iter()
            .map(|f| (*f, s.spawn(&strings(&self.lab.peer("probe.py", &["tcp", f.remote(), "446"])))))
            .collect();
        let connecting = || {
            let table = s.run(5, &["cat", "/proc/self/net/tcp", "/proc/self/net/tcp6"]).stdout;
            table.lines().filter(|l| l.contains(":01BE 02 ")).count()
        };
        wait_until("the calls wait", SOON, || connecting() == 2);
        let new = &self.rules[1];
        let (report, _) = wake(&self.lab, &image, &["--rules", new, "--rules6", new, "--recheck", recheck]);
        for (family, mut call) in calls {
            call.wait(SOON);
            let output = call.output();
            assert!(output.starts_with("ECONNREFUSED "), "{family:?}: the first packet met the old rules: {output}");
        }
        for v6 in [&[][..], &["--v6"]] {
            let rules = self.lab.hibernet(10, &[&["rules", "save", NAME], v6].concat());
            assert!(rules.ok().contains("--dports 445 ") && !rules.stdout.contains("444"), "{rules}");
        }
        report
    }
}

fn lines(p: &Proc) -> usize {
    p.output().lines().count()
}

#[test]
fn todays_rules_before_the_first_packet() {
    let Some(w) = World::new() else { return };
    let (s, servers, mut clients) = w.start();
    all_resumed(&w.through(&s, "keep"), 4);
    // What was open before stays so.
    for c in &mut clients {
        assert!(c.running() && lines(c) == 1, "{}", c.output());
    }
    assert!(servers.iter().all(|s| lines(s) <= 2));
}

#[test]
fn what_todays_rules_forbid_is_cut() {
    let Some(w) = World::new() else { return };
    let (s, servers, mut clients) = w.start();
    w.through(&s, "cut");
    for at in [0, 2] {
        wait_until("the guest gets a reset", SOON, || lines(&clients[at]) > 1);
        assert_eq!(clients[at].output().lines().last(), Some("ECONNRESET"));
        wait_until("so does the peer", SOON, || lines(&servers[[0, 0, 3][at]]) > 2);
        assert_eq!(servers[[0, 0, 3][at]].output().lines().last(), Some("ECONNRESET"));
    }
    for at in [1, 3] {
        assert!(clients[at].running() && lines(&clients[at]) == 1, "{}", clients[at].output());
    }
}
