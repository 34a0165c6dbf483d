"""Plays a virtual machine's monitor at a link of datagrams: dgram.py qemu|krun LOCAL REMOTE TAP, in the network namespace that plays the guest.

Makes the interface TAP and moves frames between it and a Unix datagram socket, one in each datagram. As "qemu" its socket is bound to LOCAL and sends to
REMOTE, connected to nothing, as QEMU's "-netdev dgram" has it; as "krun" it is connected to REMOTE, once that is there, and begins with "VFKT", as libkrun
and vfkit do. What cannot be sent is dropped. Prints "ready".
"""

import fcntl
import os
import select
import socket
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000

how, local, remote, name = sys.argv[1:]
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
try:
    os.unlink(local)
except FileNotFoundError:
    pass
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(local)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
while how == "krun":
    try:
        s.connect(remote)
        s.send(b"VFKT")
        break
    except OSError:
        time.sleep(0.02)
print("ready", flush=True)
s.setblocking(False)


def send(frame):
    while True:
        try:
            return s.send(frame) if how == "krun" else s.sendto(frame, remote)
        except BlockingIOError:
            # It has no room: the guest's frames wait in its interface, and what comes meanwhile is taken.
            select.select([s], [s], [], 0.01)
            receive()
        except OSError:
            return


def receive():
    try:
        for _ in range(64):
            frame = s.recv(70000)
            try:
                os.write(tap, frame)
            except OSError:
                pass  # the interface is down, or full
    except OSError:
        pass


while True:
    readable, _, _ = select.select([s, tap], [], [])
    if s in readable:
        receive()
    if tap in readable:
        try:
            for _ in range(64):
                send(os.read(tap, 70000))
        except BlockingIOError:
            pass
