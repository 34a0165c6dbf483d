"""Uses an interactive shell on a terminal of its own: stops a job, goes on with it, interrupts it, leaves.

usage: terminal.py SHELL...
prints "status N", the shell's exit status, at the end.
"""

import os
import pty
import select
import sys
import time

pid, fd = pty.fork()
if pid == 0:
    os.environ.update(PS1="ready> ", TERM="dumb")
    os.execvp(sys.argv[1], sys.argv[1:])

seen = ""


def expect(text, limit=20):
    """Waits for text, and forgets all up to it."""
    global seen
    end = time.monotonic() + limit
    while text not in seen:
        if not select.select([fd], [], [], max(0, end - time.monotonic()))[0]:
            sys.exit(f"no {text!r} in {seen!r}")
        try:
            got = os.read(fd, 4096)
        except OSError:
            got = b""
        if not got:
            sys.exit(f"the terminal closed before {text!r} came: {seen!r}")
        seen += got.decode(errors="replace")
    seen = seen[seen.index(text) + len(text) :]


def say(text):
    os.write(fd, text.encode())


expect("ready> ")
say("echo $((6 * 7))\n")
expect("42")
expect("ready> ")
say("sleep 1000\n")
time.sleep(0.3)
say("\x1a")  # ^Z
expect("Stopped")
expect("ready> ")
say("jobs\n")
expect("sleep 1000")
expect("ready> ")
say("fg\n")
expect("sleep 1000")
time.sleep(0.3)
say("\x03")  # ^C
expect("ready> ")
say("echo $?\n")
expect("130")
expect("ready> ")
say("exit 3\n")
_, status = os.waitpid(pid, 0)
print("status", os.waitstatus_to_exitcode(status))
