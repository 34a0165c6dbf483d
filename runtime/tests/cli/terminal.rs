//! An interactive shell in a sandbox, on a real (pseudo-)terminal.

use crate::kit::{sandboxes_work, skip};
use std::process::{Command, Stdio};

/// Job control within the sandbox, and of the sandbox by the shell around it.
#[test]
fn job_control_works() {
    if !sandboxes_work("job control") {
        return;
    }
    let script = r##"
import os, pty, select, sys, time
hibernet = sys.argv[1]
pid, fd = pty.fork()
if pid == 0:
    os.environ["INPUTRC"] = "/dev/null"
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
seen = b""
def expect(what):
    global seen
    end = time.time() + 20
    while what not in seen:
        if not select.select([fd], [], [], max(0, end - time.time()))[0]:
            sys.exit(f"in vain: {what!r} in {seen!r}")
        seen += os.read(fd, 4096)
    seen = seen[seen.index(what) + len(what):]
def type(text): os.write(fd, text.encode())
# A shell says what it continues before it gives the terminal away; a key typed in between would be the shell's.
def continued(what):
    shell = os.tcgetpgrp(fd)
    type("fg\n"); expect(what)
    end = time.time() + 20
    while os.tcgetpgrp(fd) == shell:
        if time.time() > end: sys.exit("the terminal is not given to the job")
        time.sleep(0.01)
# The text typed is echoed, so what is waited for is written in two parts.
type('PS1="OUT""> "\n'); expect(b"OUT> ")
type(f"{hibernet} run -- bash --norc --noprofile -i\n"); expect(b"# ")
type('PS1="IN""> "\n'); expect(b"IN> ")
# Stop and interrupt a job of the shell inside. (exec: a shell that is in vfork when it is to stop never does.)
type('sh -c \'echo run""ning; exec sleep 100\'\n'); expect(b"running"); type("\x1a"); expect(b"Stopped"); expect(b"IN> ")
continued(b"sleep 100"); type("\x03"); expect(b"IN> ")
type('echo st""atus=$?\n'); expect(b"status=130"); expect(b"IN> ")
# Suspend the shell inside: that outside takes over, and gives back.
type("suspend\n"); expect(b"Stopped"); expect(b"OUT> ")
continued(b"bash --norc"); type('echo aw""ake\n'); expect(b"awake"); expect(b"IN> ")
type("exit 5\n"); expect(b"OUT> ")
type('echo st""atus=$?\n'); expect(b"status=5"); expect(b"OUT> ")
# Stop and interrupt the sandbox as a job of the shell outside.
type(f"{hibernet} run -- sh -c 'echo run\"\"ning; exec sleep 100'\n"); expect(b"running"); type("\x1a"); expect(b"Stopped"); expect(b"OUT> ")
continued(b"sleep 100"); type("\x03"); expect(b"OUT> ")
type('echo st""atus=$?\n'); expect(b"status=130"); expect(b"OUT> ")
# The terminal's input reaches the command.
type(f"{hibernet} run -- sh -c 'read x; echo got-$x'\n"); type("hello\n"); expect(b"got-hello"); expect(b"OUT> ")
print("passed")
"##;
    let python = Command::new("python3").args(["-c", script, env!("CARGO_BIN_EXE_hibernet")]).stdin(Stdio::null()).output();
    match python {
        Ok(out) => assert!(out.status.success() && out.stdout == b"passed\n", "{}", String::from_utf8_lossy(&out.stderr)),
        Err(_) => skip("job control", "python3 is not installed"),
    }
}
