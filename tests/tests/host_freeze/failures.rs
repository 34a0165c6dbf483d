//! Tier *hold*: whatever goes wrong, the network goes on as if nothing had happened, or sleeps with a whole image; nothing is left behind.

use crate::kit::*;
use hibernet_tests::lab::{Done, Family, Lab, Place, Proc, Sandbox, wait_until};
use std::time::Duration;

/// A sandbox with connections that move data.
struct World<'a> {
    lab: &'a Lab,
    s: Sandbox<'a>,
    streams: [Streams; 2],
    dir: String,
    image: String,
    processes: usize,
}

const FLOWS: usize = 400;

impl<'a> World<'a> {
    fn new(lab: &'a Lab) -> World<'a> {
        let s = Sandbox::start(lab, &["--name", NAME, "-p", "7100:7100"]);
        let pace = ["chunk=500", "every=50"];
        let half = FLOWS as u32 / 2;
        let out = Streams::open(&s, lab, Family::V6, Way::Out(7000), half, &pace, &pace);
        let inn = Streams::open(&s, lab, Family::V4, Way::In(7100, 7100), half, &pace, &pace);
        let dir = lab.path("images");
        std::fs::create_dir(&dir).expect("directory");
        let image = format!("{dir}/image");
        let processes = lab.processes().len();
        World { lab, s, streams: [out, inn], dir, image, processes }
    }

    fn checkpoint(&self, file: &str, options: &[&str]) -> Done {
        self.lab.hibernet(30, &[&["checkpoint", NAME, file], options].concat())
    }

    /// Names in a directory.
    fn names(&self, dir: &str) -> Vec<String> {
        self.lab.run(Place::Host, 5, &["ls", "-A", dir]).ok().lines().map(str::to_owned).collect()
    }

    /// The network goes on, the same worker serves it, and nothing is left of what was tried.
    #[track_caller]
    fn unharmed(&self) {
        self.streams.iter().for_each(|s| s.wait_moved(1));
        assert_eq!(state(self.lab), "running");
        wait_until("what was begun is gone", SOON, || self.lab.processes().len() <= self.processes);
    }

    /// It can be put to sleep and woken, which also shows that nothing is in the way.
    #[track_caller]
    fn can_sleep(&self) {
        sleep(&self.s, self.lab, &self.image, &["--require", "all"]);
        all_resumed(&wake(self.lab, &self.image, &[]).0, FLOWS);
        assert_eq!(self.names(&self.dir), ["image"]);
        self.unharmed();
    }

    fn end(self) {
        self.streams.into_iter().for_each(Streams::end);
    }
}

#[test]
fn targets_that_cannot_be_written() {
    let Some(lab) = Lab::new(&[]) else { return };
    let w = World::new(&lab);
    let (full, fixed) = (lab.path("full"), lab.path("fixed"));
    lab.sh(
        Place::Host,
        5,
        &format!("mkdir {full} {fixed} && mount -t tmpfs -o size=16k t {full} && mount -t tmpfs -o ro t {fixed}"),
    )
    .ok();
    let missing = format!("{}/no/image", w.dir);
    for options in [&[][..], &["--live"], &["--leave-running"], &["--live", "--leave-running"]] {
        for (file, word) in [
            (format!("{full}/image"), "space"),
            (format!("{fixed}/image"), "ead-only"),
            (missing.clone(), "No such"),
            (w.dir.clone(), "directory"),
        ] {
            let done = w.checkpoint(&file, options);
            assert!(done.code == 77 && done.stderr.contains(word), "{done}");
            assert_eq!(done.stderr.lines().filter(|l| l.contains(word)).count(), 1, "one line: {done}");
            w.unharmed();
        }
        assert!(w.names(&full).is_empty() && w.names(&fixed).is_empty() && w.names(&w.dir).is_empty());
    }
    // An image that was there is still the old one.
    json(&w.checkpoint(&w.image, &["--leave-running", "--json"]));
    let old = std::fs::read(&w.image).expect("the image");
    let fill = format!(
        "cp {image} {full}/kept; mount -o remount,size=400k {full}; cp {image} {full}/image; head -c 1M /dev/zero >{full}/kept",
        image = w.image
    );
    lab.sh(Place::Host, 5, &fill);
    let done = w.checkpoint(&format!("{full}/image"), &[]);
    assert!(done.code != 0, "{done}");
    w.unharmed();
    let kept = lab.sh(Place::Host, 5, &format!("cmp {full}/image {} && echo same", w.image));
    assert!(kept.ok() == "same" && !old.is_empty(), "{kept}");
    assert_eq!(w.names(&full), ["image", "kept"]);
    w.can_sleep();
    w.end();
}

#[test]
fn what_is_required_cannot_be_had() {
    let Some(lab) = Lab::new(&[]) else { return };
    let w = World::new(&lab);
    for (options, code) in [(&["--no-hold", "--require", "all"][..], 3), (&["--leave-running", "--require", "1%"], 3)] {
        let done = w.checkpoint(&w.image, options);
        assert_eq!(done.code, code, "{done}");
        w.unharmed();
        assert!(w.names(&w.dir).is_empty());
    }
    let done = w.checkpoint(&w.image, &["--require", "101%"]);
    assert_eq!(done.code, 2, "{done}");
    w.can_sleep();
    w.end();
}

/// A connection that its server has reset while the network stood still: that it cannot be carried over shows only when it is tried.
#[test]
fn what_is_required_proves_impossible() {
    let Some(lab) = Lab::new(&["python3"]) else { return };
    let w = World::new(&lab);
    let go = lab.path("reset");
    let script = format!(
        "import os, socket, struct, time\n\
         s = socket.create_server(('10.99.0.1', 7300)); c = s.accept()[0]\n\
         while not os.path.exists('{go}'): time.sleep(0.01)\n\
         c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()"
    );
    let mut server = lab.serve(Place::Remote, 7300, &["python3", "-c", &script]);
    let _client = w.s.spawn(&["bash", "-c", "exec 3<>/dev/tcp/10.99.0.1/7300; read -u 3"]);
    let flows = || json(&lab.hibernet(10, &["checkpoint", NAME, "--dry-run", "--json"]))["flows"].as_array().map(Vec::len);
    wait_until("it is connected", SOON, || flows() == Some(FLOWS + 1));
    lab.hibernet(10, &["pause", NAME]).ok();
    std::fs::write(&go, "").expect("file");
    assert_eq!(server.wait(SOON), 0, "{}", server.output());
    let done = w.checkpoint(&w.image, &["--repair", "--require", "all"]);
    let one_less = format!("only {FLOWS} of {} flows would survive", FLOWS + 1);
    assert!(done.code == 3 && done.stderr.contains(&one_less), "{done}");
    assert!(w.names(&w.dir).is_empty());
    lab.hibernet(10, &["resume", NAME]).ok();
    w.unharmed();
    w.can_sleep();
    w.end();
}

/// Writes into a pipe that nobody reads: the checkpoint is in its middle.
fn stuck(w: &World<'_>, options: &str) -> (Proc, Proc) {
    let fifo = Streams::stop_file(w.lab);
    let reader = w.lab.spawn(Place::Host, &["bash", "-c", &format!("mkfifo {fifo} && exec sleep 1000 <>{fifo}")]);
    wait_until("there is a pipe", SOON, || std::fs::exists(&fifo).unwrap_or(false));
    let command = format!("exec {} checkpoint {NAME} - --progress {options} >{fifo}", w.lab.binary());
    let writer = w.lab.spawn(Place::Host, &["bash", "-c", &command]);
    wait_until("the freeze has begun", SOON, || writer.output().contains(" flows"));
    (writer, reader)
}

#[test]
fn the_command_is_killed_in_the_middle() {
    let Some(lab) = Lab::new(&[]) else { return };
    let w = World::new(&lab);
    for signal in ["KILL", "INT", "TERM"] {
        for options in ["", "--live", "--no-hold", "--leave-running", "--live --leave-running"] {
            let (mut writer, mut reader) = stuck(&w, options);
            if !options.contains("leave-running") {
                // It stands still until the image is safe.
                let still = || w.streams.each_ref().map(|s| at(&s.client, "received") + at(&s.server, "received"));
                let mut last = still();
                wait_until("nothing moves", SOON, || {
                    std::thread::sleep(Duration::from_millis(300));
                    std::mem::replace(&mut last, still()) == last
                });
            }
            writer.signal(signal);
            assert!(writer.wait(SOON) > 128);
            // The pipe is full still, and its reader there.
            w.streams.iter().for_each(|s| s.wait_moved(1));
            w.can_sleep_beside();
            reader.signal("KILL");
            reader.wait(SOON);
            w.unharmed();
        }
    }
    w.can_sleep();
    w.end();
}

impl World<'_> {
    /// Can be put to sleep and woken although something else may still be there.
    #[track_caller]
    fn can_sleep_beside(&self) {
        sleep(&self.s, self.lab, &self.image, &["--require", "all"]);
        all_resumed(&wake(self.lab, &self.image, &[]).0, FLOWS);
    }
}

#[test]
fn a_reader_that_leaves() {
    let Some(lab) = Lab::new(&[]) else { return };
    let w = World::new(&lab);
    for options in ["", "--live", "--leave-running"] {
        let script = format!("set -o pipefail; {} checkpoint {NAME} - {options} | head -c 1000 | wc -c", lab.binary());
        let done = lab.sh(Place::Host, 20, &script);
        assert!(done.code != 0 && done.stdout.trim() == "1000" && done.stderr.contains("ipe"), "{done}");
        w.unharmed();
    }
    w.can_sleep();
    w.end();
}

/// At any moment of a checkpoint: the network goes on or is asleep, and a file is a whole image.
#[test]
fn the_command_is_killed_at_any_moment() {
    let Some(lab) = Lab::new(&[]) else { return };
    let w = World::new(&lab);
    let mut ends = [0; 2];
    for signal in ["KILL", "INT"] {
        for ms in (1..40).step_by(3) {
            std::fs::remove_file(&w.image).ok();
            let limit = format!("0.{ms:03}");
            let argv = ["timeout", "-s", signal, &limit, &lab.binary(), "checkpoint", NAME, &w.image];
            lab.run(Place::Host, 20, &argv);
            // As long as anything of it is going on, others are refused.
            let idle = || lab.hibernet(10, &["checkpoint", NAME, "--dry-run"]).code == 0;
            wait_until("nothing of it is going on", SOON, || state(&lab) == "asleep" || idle());
            let asleep = state(&lab) == "asleep";
            ends[usize::from(asleep)] += 1;
            if asleep || std::fs::exists(&w.image).unwrap_or(false) {
                json(&lab.hibernet(10, &["inspect", &w.image, "--json"]));
            }
            if asleep {
                all_resumed(&wake(&lab, &w.image, &[]).0, FLOWS);
            }
            w.unharmed();
            let left: Vec<_> = w.names(&w.dir).into_iter().filter(|n| n != "image").collect();
            assert!(left.is_empty(), "SIG{signal} after {ms} ms left {left:?}");
        }
    }
    eprintln!("killed at any moment: {} times it went on, {} times it slept", ends[0], ends[1]);
    w.can_sleep();
    w.end();
}

/// Before and behind every step that makes the image last and has the network fall asleep.
#[test]
fn the_command_is_killed_at_every_step() {
    let Some(lab) = Lab::new(&["strace"]) else { return };
    let w = World::new(&lab);
    let generation = || {
        let done = lab.hibernet(10, &["inspect", &w.image, "--json"]);
        (done.code == 0).then(|| json(&done)["generation"].as_str().expect("a generation").to_owned())
    };
    // There is an older image each time.
    sleep(&w.s, &lab, &w.image, &[]);
    all_resumed(&wake(&lab, &w.image, &[]).0, FLOWS);
    // The step at whose begin it ends, whether the new image is in place then, and whether it has said that it is.
    let steps = [
        ("fsync:signal=KILL:when=1", false, false),
        ("linkat:signal=KILL:when=1", false, false),
        ("renameat:signal=KILL:when=1", false, false),
        ("fsync:signal=KILL:when=2", true, false),
        ("sendmsg:signal=KILL:when=3", true, false),
        ("write:signal=KILL:when=1", true, true),
    ];
    for (step, is_new, is_asleep) in steps {
        let before = generation();
        let call = step.split(':').next().expect("a call");
        let inject = format!("inject={step}");
        let trace = format!("trace={call}");
        let argv = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject, &lab.binary()];
        let done = lab.run(Place::Host, 30, &[&argv[..], &["checkpoint", NAME, &w.image, "--json"]].concat());
        assert!(done.code > 128, "{step}: {done}");
        let idle = || lab.hibernet(10, &["checkpoint", NAME, "--dry-run"]).code == 0;
        wait_until("nothing of it is going on", SOON, || state(&lab) == "asleep" || idle());
        assert_eq!(state(&lab) == "asleep", is_asleep, "{step}");
        let after = generation();
        assert!(after.is_some() && (after != before) == is_new, "{step}: {before:?} {after:?}");
        if is_asleep {
            all_resumed(&wake(&lab, &w.image, &[]).0, FLOWS);
        }
        w.unharmed();
    }
    // What the kill behind `linkat` left is gone, too.
    w.can_sleep();
    w.end();
}

#[test]
fn the_worker_is_killed_in_the_middle() {
    let Some(lab) = Lab::new(&[]) else { return };
    for options in ["", "--live --leave-running"] {
        let before = lab.processes().len();
        let mut w = World::new(&lab);
        let (mut writer, mut reader) = stuck(&w, options);
        let worker = w.s.worker().to_string();
        std::process::Command::new("kill").args(["-KILL", &worker]).status().expect("kill runs");
        assert_eq!(w.s.supervisor.wait(SOON), 76, "{}", w.s.supervisor.output());
        let code = writer.wait(SOON);
        assert!(code != 0 && code < 128, "{}", writer.output());
        reader.signal("KILL");
        reader.wait(SOON);
        assert_eq!(state(&lab), "none");
        std::fs::remove_dir_all(&w.dir).ok();
        drop(w);
        wait_until("everything of it has ended", SOON, || lab.processes().len() <= before);
    }
}

/// The supervisor is killed while the network sleeps: what it held ends, and the name is free.
#[test]
fn the_supervisor_is_killed_while_it_sleeps() {
    let Some(lab) = Lab::new(&[]) else { return };
    let before = lab.processes().len();
    let mut w = World::new(&lab);
    sleep(&w.s, &lab, &w.image, &[]);
    w.s.supervisor.signal("KILL");
    w.s.supervisor.wait(SOON);
    assert_eq!(state(&lab), "none");
    let image = w.image.clone();
    let done = lab.hibernet(10, &["restore", &image]);
    assert!(done.code == 75 && done.stderr.contains(NAME), "{done}");
    let again = lab.hibernet(20, &["restore", &image, "--name", NAME, "--", "true"]);
    assert_eq!(again.code, 0, "{again}");
    drop(w);
    wait_until("everything of it has ended", SOON, || lab.processes().len() <= before);
}

/// Images and rules that cannot be used: it sleeps on, and wakes from the right ones with everything alive.
#[test]
fn what_cannot_be_restored() {
    let Some(lab) = Lab::new(&[]) else { return };
    let w = World::new(&lab);
    sleep(&w.s, &lab, &w.image, &[]);
    let good = std::fs::read(&w.image).expect("the image");
    let bad = lab.path("bad");
    let refused = |bytes: &[u8], how: &str| {
        std::fs::write(&bad, bytes).expect("file");
        let done = lab.hibernet(20, &["restore", &bad, "--name", NAME]);
        assert!(done.code == 80 && done.stderr.lines().count() == 1, "{how}: {done}");
        assert_eq!(state(&lab), "asleep", "{how}");
    };
    for part in 0..16 {
        let at = good.len() * part / 16 + 5;
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (part % 8);
        refused(&flipped, &format!("a flipped bit at {at}"));
        refused(&good[..at], &format!("cut at {at}"));
    }
    refused(b"", "empty");
    refused(&[0; 4096], "zeros");
    refused(&[&good[..], b"more"].concat(), "more behind the end");
    for (text, code) in
        [("*filter\n-A FORWARD -j\nCOMMIT\n", 78), ("*filter\n-A NOWHERE -j ACCEPT\nCOMMIT\n", 78), ("nonsense\n", 78)]
    {
        std::fs::write(&bad, text).expect("file");
        for option in ["--rules", "--rules6"] {
            let done = lab.hibernet(20, &["restore", &w.image, option, &bad]);
            assert_eq!(done.code, code, "{text}: {done}");
            assert_eq!(state(&lab), "asleep");
        }
    }
    let done = lab.hibernet(20, &["restore", &w.image, "--rules", &lab.path("nothing")]);
    assert_eq!((done.code, state(&lab).as_str()), (77, "asleep"), "{done}");
    for command in [&["checkpoint", NAME, &bad][..], &["pause", NAME], &["resume", NAME], &["upgrade", NAME]] {
        let done = lab.hibernet(20, command);
        assert_eq!((done.code, state(&lab).as_str()), (79, "asleep"), "{done}");
    }
    all_resumed(&wake(&lab, &w.image, &[]).0, FLOWS);
    w.unharmed();
    w.can_sleep();
    w.end();
}

/// A program that is no worker, or ends at once, takes nobody's place.
#[test]
fn upgrades_that_fail() {
    let Some(lab) = Lab::new(&[]) else { return };
    let w = World::new(&lab);
    let nonsense = lab.path("nonsense");
    std::fs::write(&nonsense, "no program").expect("file");
    for (program, code) in [("/bin/true", 70), (nonsense.as_str(), 70), ("/no/such/program", 77)] {
        let done = lab.hibernet(30, &["upgrade", NAME, "--binary", program]);
        assert!(done.code == code || done.code == 76, "{done}");
        w.unharmed();
    }
    w.can_sleep();
    w.end();
}
