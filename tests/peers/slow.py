"""A receiver that does not read for a while, and a sender that has much for it.

usage: slow.py serve-send ADDRESS PORT BYTES          sends the stream to each client
       slow.py serve-receive ADDRESS PORT BYTES FILE  reads nothing until FILE exists, then all; prints its digest
       slow.py send ADDRESS PORT BYTES                connects and sends the stream
       slow.py receive ADDRESS PORT BYTES FILE        connects, reads nothing until FILE exists, then all; prints its digest
A sender prints "queued N" whenever it could not go on for a second.
"""

import hashlib
import os
import select
import socket
import sys
import time

import stream

role, addr, port, total = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def send(s):
    s.setblocking(False)
    sent = 0
    for block in stream.blocks(total):
        view = memoryview(block)
        while view:
            if not select.select([], [s], [], 1)[1]:
                print("queued", sent, flush=True)
                continue
            n = s.send(view)
            sent += n
            view = view[n:]
    s.setblocking(True)
    s.shutdown(socket.SHUT_WR)
    s.recv(1)


def receive(s, file):
    print("connected", flush=True)
    while not os.path.exists(file):
        time.sleep(0.05)
    h = hashlib.sha256()
    got = 0
    while True:
        data = s.recv(1 << 20)
        if not data:
            break
        got += len(data)
        h.update(data)
    print(got, h.hexdigest(), flush=True)


if role.startswith("serve"):
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((addr, port))
    listener.listen(16)
    s, _ = listener.accept()
else:
    s = socket.create_connection((addr, port), timeout=20)
    s.settimeout(None)
if role.endswith("send"):
    send(s)
else:
    receive(s, sys.argv[5])
