//! The lab: namespaces, and how to run something in them.

use super::proc::{self, Done, Proc};
use super::{Family, find_program, skip, wait_until};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Makes the lab's network. Runs as the first process of its PID namespace.
const SET_UP: &str = r#"
set -e
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/sshd /run/lock /run/etc
cp -a /etc/. /run/etc 2>/dev/null || true
rm -f /run/etc/resolv.conf
echo "nameserver 10.99.0.1" >/run/etc/resolv.conf
mount --bind /run/etc /etc
ip netns add remote
# The links' own addresses are usable as soon as they are there.
no_dad="cd /proc/sys/net/ipv6/conf && echo 0 >all/accept_dad && echo 0 >default/accept_dad"
bash -c "$no_dad"
ip netns exec remote bash -c "$no_dad"
ip link set lo up
ip -n remote link set lo up
ip link add up0 type veth peer name re0 netns remote
ip addr add 10.99.0.2/24 dev up0
ip addr add fd99::2/64 dev up0 nodad
ip link set up0 up
ip -n remote addr add 10.99.0.1/24 dev re0
ip -n remote addr add fd99::1/64 dev re0 nodad
ip -n remote link set re0 up
ip route add default via 10.99.0.1
ip -6 route add default via fd99::1
{ echo "0 2147483647" || echo "0 0"; } 2>/dev/null >/proc/sys/net/ipv4/ping_group_range
# Nothing changes by itself any more once both ends have noticed each other.
settled() {
    [[ $(ip $1 -o link show $2) == *" state UP "* ]] &&
    [[ $(ip $1 -o -6 addr show dev $2 scope link -tentative) == *" fe80:"* ]]
}
for i in {1..1000}; do settled "" up0 && settled "-n remote" re0 && break; sleep 0.01; done
# A new link may lose its first neighbour solicitations.
for i in 1 2 3 4 5; do ping -q -6 -c1 -W1 fd99::1 >/dev/null && ping -q -4 -c1 -W1 10.99.0.1 >/dev/null && break; done
"#;

/// Puts file systems of the lab's own over the machine's directories for temporary files, less the directories given.
const OWN_TEMPORARY: &str = r#"
set -e
for d in "$@"; do i=$((i + 1)); mkdir -p /run/keep/$i; mount --rbind "$d" /run/keep/$i; done
for d in /tmp /var/tmp /dev/shm; do [ ! -d $d ] || mount -t tmpfs -o mode=1777 own $d; done
i=0
for d in "$@"; do i=$((i + 1)); mkdir -p "$d"; mount --rbind /run/keep/$i "$d"; done
"#;

/// Start of a set-up that the test brings.
const OWN_RUN: &str = "set -e\nmount -t tmpfs -o mode=755 run /run\nmkdir -p /run/netns /run/lock\n";

/// End of every set-up: says that all is there, reaps what is left, ends with its input.
const STAY: &str = "\necho ready\ncat <&0 >/dev/null &\nwait $!\n";

static LABS: AtomicU32 = AtomicU32::new(0);

/// A namespace of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where hibernet runs.
    Host,
    /// Where the servers are.
    Remote,
}

/// See the module above.
#[derive(Debug)]
pub struct Lab {
    holder: Child,
    pid: u32,
    dir: PathBuf,
    root: bool,
    count: AtomicU32,
}

impl Lab {
    /// Makes a lab for a test that needs `programs`. `None` (and [`skip`]) if this machine cannot have it.
    pub fn new(programs: &[&str]) -> Option<Lab> {
        assert!(hibernet().is_file(), "{} is missing: cargo build --release -p hibernet", hibernet().display());
        let programs: Vec<_> = programs.iter().copied().chain(["ping"]).collect();
        Lab::made_by(&[SET_UP, STAY].concat(), &programs)
    }

    /// As [`Lab::new`], with namespaces that a script of the test's makes in place of *remote*: it runs as root of the
    /// namespace *host*, where `/run` is its own. Nothing of hibernet need be built.
    pub fn with_set_up(script: &str, programs: &[&str]) -> Option<Lab> {
        Lab::made_by(&[OWN_RUN, script, STAY].concat(), programs)
    }

    fn made_by(script: &str, programs: &[&str]) -> Option<Lab> {
        let always = ["unshare", "nsenter", "ip", "bash", "timeout", "kill"];
        let missing: Vec<_> = always.iter().chain(programs).filter(|p| find_program(p).is_none()).collect();
        if !missing.is_empty() {
            skip(&format!("needs {missing:?}, not installed"));
            return None;
        }
        let root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0).unwrap_or(false);
        let dir =
            std::env::temp_dir().join(format!("hibernet-lab-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&dir).expect("temporary directory");

        let mut command = Command::new("unshare");
        if !root {
            command.arg("-Ur");
        }
        command.args(["-m", "-p", "--fork", "--kill-child", "--mount-proc"]);
        // The network comes after the user namespace has its map, or files under /proc/net would not be its root's.
        command.args(["unshare", "-n", "bash", "-c", script]);
        command.env("PATH", search_path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = command.spawn().expect("unshare runs");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).ok();
        if line.trim() != "ready" {
            let mut why = String::new();
            holder.stderr.take().expect("piped").read_to_string(&mut why).ok();
            holder.wait().ok();
            std::fs::remove_dir_all(&dir).ok();
            skip(&format!("namespaces cannot be made here: {}", why.trim()));
            return None;
        }
        let id = holder.id();
        let pid = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))
            .ok()
            .and_then(|c| c.split_whitespace().next()?.parse().ok())
            .expect("unshare has a child");
        Some(Lab { holder, pid, dir, root, count: AtomicU32::new(0) })
    }

    /// Gives the lab directories for temporary files that no other process of the machine writes to.
    pub fn own_temporary_files(&self) {
        let binary = hibernet();
        let beside = binary.parent().expect("a directory").to_string_lossy();
        self.run(Place::Host, 10, &["bash", "-c", OWN_TEMPORARY, "bash", &self.path(""), &beside]).ok();
    }

    /// Whether the lab was made by root, so that it has no user namespace of its own.
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// A directory of the lab's own, gone with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in [`Lab::dir`], as text.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// A command to be run in a namespace of the lab.
    pub fn command(&self, place: Place, argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-m", "-n", "-p"]);
        if !self.root {
            command.args(["-U", "--preserve-credentials"]);
        }
        command.arg(format!("--wd={}", self.dir.display())).arg("--");
        if place == Place::Remote {
            command.args(["nsenter", "--net=/run/netns/remote", "--"]);
        }
        command.args(argv).env("PATH", search_path()).env("LC_ALL", "C").env("TMPDIR", &self.dir).env("HOME", &self.dir);
        for unwanted in ["HIBERNET_SKIP_LOG", "XDG_RUNTIME_DIR", "RUST_LOG"] {
            command.env_remove(unwanted);
        }
        command
    }

    /// Runs a program to its end, at most `seconds` long.
    pub fn run(&self, place: Place, seconds: u32, argv: &[&str]) -> Done {
        self.run_with(place, seconds, argv, &[])
    }

    /// As [`Lab::run`], with standard input.
    pub fn run_with(&self, place: Place, seconds: u32, argv: &[&str], input: &[u8]) -> Done {
        let limit = seconds.to_string();
        let mut all = vec!["timeout", "--foreground", "-k", "2", &limit];
        all.extend_from_slice(argv);
        proc::run(self.command(place, &all), input)
    }

    /// Runs a shell script to its end, at most `seconds` long.
    pub fn sh(&self, place: Place, seconds: u32, script: &str) -> Done {
        self.run(place, seconds, &["bash", "-c", script])
    }

    /// Starts a program in the background.
    pub fn spawn(&self, place: Place, argv: &[&str]) -> Proc {
        let n = self.unique();
        Proc::spawn(self.command(place, argv), argv[0], self.dir.join(format!("log-{n}")))
    }

    /// Starts a server and waits until it listens at `port` of the namespace (TCP).
    pub fn serve(&self, place: Place, port: u16, argv: &[&str]) -> Proc {
        let mut server = self.spawn(place, argv);
        self.wait_listening(place, port, &mut server);
        server
    }

    /// Waits until something listens at a TCP port.
    pub fn wait_listening(&self, place: Place, port: u16, server: &mut Proc) {
        wait_until(&format!("a server listens at {port}"), Duration::from_secs(20), || {
            assert!(server.running(), "ended early:\n{}", server.output());
            self.listens(place, &format!(":{port:04X} "), "tcp")
        });
    }

    /// Waits until something is bound to a UDP port.
    pub fn wait_bound(&self, place: Place, port: u16, server: &mut Proc) {
        wait_until(&format!("a server is bound to {port}"), Duration::from_secs(20), || {
            assert!(server.running(), "ended early:\n{}", server.output());
            self.listens(place, &format!(":{port:04X} "), "udp")
        });
    }

    fn listens(&self, place: Place, port: &str, proto: &str) -> bool {
        let tables = [format!("/proc/net/{proto}"), format!("/proc/net/{proto}6")];
        let state = if proto == "tcp" { " 0A " } else { " 07 " };
        let table = self.run(place, 5, &["cat", &tables[0], &tables[1]]).stdout;
        table.lines().any(|l| l.split_whitespace().nth(1).is_some_and(|a| format!("{a} ").ends_with(port)) && l.contains(state))
    }

    /// Path of the program under test.
    pub fn binary(&self) -> String {
        hibernet().to_string_lossy().into_owned()
    }

    /// Runs `hibernet` with these arguments in the namespace *host*, to its end.
    pub fn hibernet(&self, seconds: u32, args: &[&str]) -> Done {
        let bin = self.binary();
        let mut argv = vec![bin.as_str()];
        argv.extend_from_slice(args);
        self.run(Place::Host, seconds, &argv)
    }

    /// Runs a shell script in a sandbox, `hibernet run OPTIONS -- bash -c SCRIPT`, to its end.
    pub fn in_sandbox(&self, seconds: u32, options: &[&str], script: &str) -> Done {
        let mut args = vec!["run"];
        args.extend_from_slice(options);
        args.extend_from_slice(&["--", "bash", "-c", script]);
        self.hibernet(seconds, &args)
    }

    /// Starts `hibernet` in the background.
    pub fn spawn_hibernet(&self, args: &[&str]) -> Proc {
        let bin = self.binary();
        let mut argv = vec![bin.as_str()];
        argv.extend_from_slice(args);
        self.spawn(Place::Host, &argv)
    }

    /// A Python server or client of `tests/peers`, as a command line.
    pub fn peer(&self, name: &str, args: &[&str]) -> Vec<String> {
        let python = find_program("python3").expect("python3");
        // Copied where every user may read it.
        let script = self.dir.join(name);
        if !script.exists() {
            std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name), &script).expect("peer script");
        }
        let head = [python.to_string_lossy().into_owned(), script.to_string_lossy().into_owned()];
        head.into_iter().chain(args.iter().map(|a| (*a).to_owned())).collect()
    }

    /// Starts a server of `tests/peers` at a TCP port and waits until it listens; the port is its last argument.
    pub fn serve_peer(&self, place: Place, name: &str, args: &[&str], family: Family, port: u16) -> Proc {
        let port_text = port.to_string();
        let mut all = args.to_vec();
        all.extend_from_slice(&[family.any(), &port_text]);
        let argv = self.peer(name, &all);
        self.serve(place, port, &argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Processes in the lab that are not its own: PID and name. Zombies do not count.
    pub fn processes(&self) -> Vec<String> {
        let space = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = space(self.pid);
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
            .filter(|&p| p != self.pid && space(p) == own)
            .filter_map(|p| std::fs::read_to_string(format!("/proc/{p}/stat")).ok())
            .filter_map(|stat| {
                let (head, tail) = stat.rsplit_once(") ")?;
                (!tail.starts_with('Z') && !head.ends_with("(cat")).then(|| head.to_owned())
            })
            .collect()
    }

    /// A number that no other thing in this lab has.
    pub(super) fn unique(&self) -> u32 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// The program under test: `HIBERNET_BIN`, else what was built beside this test.
pub(super) fn hibernet() -> PathBuf {
    if let Some(path) = std::env::var_os("HIBERNET_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("path of the test");
    exe.ancestors().nth(2).expect("target directory").join("hibernet")
}

fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:{own}")
}
