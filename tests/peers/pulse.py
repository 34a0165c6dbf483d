"""Numbered datagrams to an echo server (echo.py udp), from one socket, until a file exists.

usage: pulse.py ADDRESS PORT FILE
Prints `at sent=N got=N` now and then; at the end, when all are answered or three seconds have passed, `done sent=N got=N ports=N`
where `ports` counts the sources that the server saw.
"""

import os
import selectors
import socket
import sys
import time

addr, port, stop = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET6 if ":" in addr else socket.AF_INET, socket.SOCK_DGRAM)
s.connect((addr, port))
s.setblocking(False)
sel = selectors.DefaultSelector()
sel.register(s, selectors.EVENT_READ)
sent, got, ports = 0, set(), set()
due = time.monotonic()
end = None
while True:
    now = time.monotonic()
    if end is None and os.path.exists(stop):
        end = now + 3
    if end is not None and (len(got) == sent or now > end):
        break
    if end is None and now >= due:
        s.send(b"%d" % sent)
        sent += 1
        due = now + 0.02
        print(f"at sent={sent} got={len(got)}", flush=True)
    if sel.select(0.01):
        try:
            words = s.recv(2000).split()
        except BlockingIOError:
            continue
        ports.add(words[2])
        number = int(words[4])
        if number >= sent or number in got:
            sys.exit(f"{number} twice or out of nowhere")
        got.add(number)
print(f"done sent={sent} got={len(got)} ports={len(ports)}")
