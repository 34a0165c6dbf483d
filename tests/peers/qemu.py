"""Plays the side of QEMU at a link: qemu.py connect|listen PATH TAP, in the network namespace that plays the guest.

Makes the interface TAP and moves frames between it and a Unix stream socket, each behind its length, as QEMU's "-netdev stream" does. When the other side
goes, it connects (or accepts) again, as with reconnect-ms. Prints a line for each connection. SIGUSR1 ends the connection, in the middle of a frame if
one waits; SIGUSR2 announces a frame that is too long.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
MAX_WAITING = 1 << 20


def make_tap(name):
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def connections(how, path):
    if how == "listen":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(1)
        while True:
            yield listener.accept()[0]
    while True:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            s.connect(path)
            yield s
        except OSError:
            s.close()
            time.sleep(0.05)


def serve(s, tap):
    """Until the other side goes."""
    s.setblocking(False)
    received, waiting = bytearray(), bytearray()
    told.clear()
    while True:
        if signal.SIGUSR1 in told:
            return
        if signal.SIGUSR2 in told:
            told.clear()
            waiting += struct.pack(">I", 70000)
        # A guest's frames wait in its interface while the other side takes none.
        reads = [s] if len(waiting) > MAX_WAITING else [s, tap]
        readable, _, _ = select.select(reads + [bell], [s] if waiting else [], [])
        if bell in readable:
            os.read(bell, 100)
            continue
        if tap in readable:
            try:
                for _ in range(64):
                    frame = os.read(tap, 70000)
                    waiting += struct.pack(">I", len(frame)) + frame
            except BlockingIOError:
                pass
        if waiting:
            try:
                del waiting[: s.send(waiting)]
            except BlockingIOError:
                pass
            except OSError:
                return
        if s in readable:
            try:
                data = s.recv(1 << 18)
            except OSError:
                return
            if not data:
                return
            received += data
            at = 0
            while len(received) >= at + 4:
                (length,) = struct.unpack_from(">I", received, at)
                if len(received) < at + 4 + length:
                    break
                try:
                    os.write(tap, received[at + 4 : at + 4 + length])
                except (BlockingIOError, OSError):
                    pass  # the interface is down, or full
                at += 4 + length
            del received[:at]


told = set()
bell, ringer = os.pipe()
os.set_blocking(ringer, False)
signal.set_wakeup_fd(ringer)
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda n, _: told.add(n))
tap = make_tap(sys.argv[3])
for s in connections(sys.argv[1], sys.argv[2]):
    print("connected", flush=True)
    serve(s, tap)
    print("disconnected", flush=True)
    s.close()
