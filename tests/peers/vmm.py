"""Stands for a VMM with a guest: it holds the descriptor's side of the TAP OUTER as Firecracker does, and its guest's
network card is the TAP INNER, whose interface is the test's to move into a namespace. Frames go between them as they are,
virtio-net headers included. Stopped (SIGSTOP), it is a paused VM.

usage: vmm.py OUTER INNER
       vmm.py --exec NAME COMMAND...   opens TAP NAME the same way and runs COMMAND, "{fd}" in it being the descriptor
       vmm.py --socket INNER COMMAND...  the VMM end of a socket pair of messages, bare frames; COMMAND gets "{fd}"
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO = 1, 2, 4, 16


def open_tap(name, vnet=True):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet else 0)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    if vnet:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", 12))
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return fd


def relay(one, other):
    print("ready", flush=True)
    while True:
        for fd in select.select([one, other], [], [])[0]:
            for _ in range(64):
                try:
                    frame = os.read(fd, 1 << 17)
                except BlockingIOError:
                    break
                if not frame:
                    return
                to = other if fd == one else one
                # The queue of such a socket is short; a TAP's card is never full.
                select.select([], [to], [], 1)
                try:
                    os.write(to, frame)
                except OSError:
                    pass  # Down: a frame is lost, as on any wire.


if sys.argv[1] == "--exec":
    fd = open_tap(sys.argv[2])
    os.set_inheritable(fd, True)
    argv = [a.replace("{fd}", str(fd)) for a in sys.argv[3:]]
    os.execvp(argv[0], argv)
elif sys.argv[1] == "--socket":
    inner = open_tap(sys.argv[2], vnet=False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    argv = [a.replace("{fd}", str(theirs.fileno())) for a in sys.argv[3:]]
    subprocess.Popen(argv, pass_fds=[theirs.fileno()])
    theirs.close()
    relay(inner, ours.fileno())
else:
    relay(open_tap(sys.argv[1]), open_tap(sys.argv[2]))
