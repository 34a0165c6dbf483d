"""A connection that stays until somebody ends it, and what its end was, at both ends.

usage: hold.py serve ADDRESS PORT   prints "ready", then for each connection "opened" and how it ended
       hold.py ADDRESS PORT         prints "connected" once a byte went to and fro, then how the connection ended
How it ended is "end" or the name of the error.
"""

import errno
import socket
import sys
import threading


def wait(s):
    try:
        while s.recv(65536):
            pass
        return "end"
    except OSError as e:
        return errno.errorcode[e.errno]


def serve(conn):
    conn.sendall(conn.recv(1))
    print("opened", flush=True)
    print(wait(conn), flush=True)


if sys.argv[1] == "serve":
    addr, port = sys.argv[2], int(sys.argv[3])
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    listener = socket.create_server((addr, port), family=family)
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
s.sendall(b"x")
s.recv(1)
s.settimeout(None)
print("connected", flush=True)
print(wait(s), flush=True)
