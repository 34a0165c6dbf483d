"""Many connections that live on whatever becomes of the network between, and who does what to them.

usage: held.py server PORT FIFO             for lines of FIFO: "send N", "close N", "reset N", "ran N"; prints "sent N NANOSECONDS", "closed N",
                                        "reset N", "ran N NANOSECONDS"; and "N got TEXT" for what comes; at "bare N" it
                                        prints "bare NANOSECONDS", and a shell of its own sends "ran N"
       held.py client ADDRESS PORT N FIFO   opens N connections; prints "open N", then "n got TEXT", "n end", "n reset" for what comes;
                                        for lines of FIFO as above
A connection's number is that of its opening at the client. Servers ask every second whether clients are there.
"""

import os
import resource
import selectors
import socket
import sys
import time

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
sel = selectors.DefaultSelector()
role = sys.argv[1]
conns = {}


def say(*words):
    print(*words, flush=True)


def line(s):
    text = b""
    while not text.endswith(b"\n"):
        text += s.recv(1)
    return text.decode().strip()


def came(n, s):
    try:
        data = s.recv(65536)
    except ConnectionResetError:
        data = None
    if data:
        return say(n, "got", data.decode())
    sel.unregister(s)
    say(n, "end" if data is not None else "reset")


def order(text):
    what, n = text.split()
    s = conns.get(int(n))
    if what == "send":
        # Before the call: what it causes may be over when that returns.
        now = time.time_ns()
        s.sendall(b"x")
        say("sent", n, now)
    elif what == "ran":
        say("ran", n, time.time_ns())
    elif what == "bare":
        say("bare", time.time_ns())
        os.posix_spawn("/bin/sh", ["sh", "-c", f"echo ran {n} >{sys.argv[-1]}"], os.environ)
    elif what == "close":
        s.shutdown(socket.SHUT_WR)
        say("closed", n)
    elif what == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sel.unregister(s)
        s.close()
        say("reset", n)


fifo = os.open(sys.argv[-1], os.O_RDWR | os.O_NONBLOCK)
sel.register(fifo, selectors.EVENT_READ)
if role == "server":
    listener = socket.create_server(("", int(sys.argv[2])), backlog=4096)
    sel.register(listener, selectors.EVENT_READ)
else:
    addr, port, count = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    for n in range(count):
        s = socket.create_connection((addr, port), timeout=30)
        s.sendall(f"{n}\n".encode())
        line(s)
        s.settimeout(None)
        conns[n] = s
        sel.register(s, selectors.EVENT_READ, n)
    say("open", count)

while True:
    for key, _ in sel.select():
        if key.fileobj is fifo:
            for text in os.read(fifo, 65536).decode().splitlines():
                order(text)
        elif role == "server" and key.fileobj is listener:
            s, _ = listener.accept()
            for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 100)):
                s.setsockopt(socket.IPPROTO_TCP, option, value)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            n = int(line(s))
            s.sendall(b"ok\n")
            conns[n] = s
            sel.register(s, selectors.EVENT_READ, n)
        else:
            came(key.data, key.fileobj)
