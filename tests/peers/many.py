"""Many connections open at once.

usage: many.py server ADDRESS PORT       answers each line with the same line
       many.py client ADDRESS PORT N     opens N connections, then uses each of them, twice, then closes all; prints how many worked
"""

import resource
import selectors
import socket
import sys

role, addr, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in addr else socket.AF_INET
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
sel = selectors.DefaultSelector()

if role == "server":
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((addr, port))
    listener.listen(4096)
    sel.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in sel.select():
            if key.fileobj is listener:
                conn, _ = listener.accept()
                sel.register(conn, selectors.EVENT_READ)
                continue
            try:
                data = key.fileobj.recv(4096)
            except ConnectionError:
                data = b""
            if data:
                key.fileobj.sendall(data)
            else:
                sel.unregister(key.fileobj)
                key.fileobj.close()

count = int(sys.argv[4])
conns = []
for n in range(count):
    s = socket.create_connection((addr, port), timeout=30)
    conns.append(s)
good = 0
for turn in range(2):
    for n, s in enumerate(conns):
        s.sendall(f"{turn} {n}\n".encode())
    for n, s in enumerate(conns):
        want = f"{turn} {n}\n".encode()
        got = b""
        while len(got) < len(want):
            piece = s.recv(100)
            if not piece:
                sys.exit(f"connection {n} closed in turn {turn}")
            got += piece
        if got != want:
            sys.exit(f"connection {n}: {got!r} instead of {want!r}")
        good += 1
for s in conns:
    s.close()
print(good)
