"""Opens raw packet sockets in network namespaces and hands them over.

packet_sockets.py SOCKET [NAMESPACE:DEVICE:PROTOCOL]...

NAMESPACE is a path, or empty for the present one; PROTOCOL an EtherType in hexadecimal, 0003 for all.
"""
import ctypes
import os
import socket
import sys

SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)

opened = []
for what in sys.argv[2:]:
    namespace, device, protocol = what.split(":")
    if namespace:
        fd = os.open(namespace, os.O_RDONLY)
        if libc.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns " + namespace)
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    s.bind((device, int(protocol, 16)))
    opened.append(s)

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as out:
    out.connect(sys.argv[1])
    socket.send_fds(out, [b"!"], [s.fileno() for s in opened])
    out.recv(1)
