"""Urgent data among ordinary data.

usage: urgent.py serve-receive|serve-send ADDRESS PORT [FILE]
       urgent.py receive|send ADDRESS PORT [FILE]
With FILE a sender says "half" when half is sent, and waits until FILE exists. The receiver reads in line (SO_OOBINLINE) and prints what it got.
"""

import os
import socket
import sys
import time

role, addr, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if role.startswith("serve"):
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    listener.bind((addr, port))
    listener.listen(16)
    s, _ = listener.accept()
else:
    s = socket.create_connection((addr, port), timeout=20)
s.settimeout(40)
if role.endswith("send"):
    for n in range(20):
        if n == 10 and len(sys.argv) > 4:
            print("half", flush=True)
            while not os.path.exists(sys.argv[4]):
                time.sleep(0.01)
        s.sendall(b"ordinary%02d-" % n)
        s.send(b"U", socket.MSG_OOB)
        # Now together with what follows, now alone.
        if n % 2:
            time.sleep(0.02)
    s.shutdown(socket.SHUT_WR)
    s.recv(1)
else:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    got = b""
    while True:
        data = s.recv(4096)
        if not data:
            break
        got += data
    want = b"".join(b"ordinary%02d-U" % n for n in range(20))
    print("right" if got == want else got)
