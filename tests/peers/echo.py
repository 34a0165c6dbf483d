"""Server that says who asks and gives back what it gets, over TCP or UDP.

usage: echo.py tcp|udp ADDRESS PORT [PORT...]

Each answer is "PORT CLIENT-ADDRESS CLIENT-PORT LOCAL-ADDRESS " followed by the bytes received: TCP until the client's FIN,
UDP one datagram.
"""

import selectors
import socket
import sys
import threading


def prefix(port, peer, local):
    return f"{port} {peer[0]} {peer[1]} {local[0]} ".encode()


def tcp(conn, port, peer):
    with conn:
        data = b""
        while True:
            got = conn.recv(65536)
            if not got:
                break
            data += got
        conn.sendall(prefix(port, peer, conn.getsockname()) + data)


IP_PKTINFO = 8


def without_interface(value):
    """A packet-info message for sending: the address as received, any interface."""
    if len(value) == 12:
        # in_pktinfo: interface, local address, destination of the packet.
        return bytes(4) + value[8:12] + bytes(4)
    return value[:16] + bytes(4)


def main():
    proto, addr = sys.argv[1:3]
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    sel = selectors.DefaultSelector()
    for port in map(int, sys.argv[3:]):
        s = socket.socket(family, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if proto == "udp" and family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif proto == "udp":
            s.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        s.bind((addr, port))
        if proto == "tcp":
            s.listen(1024)
        sel.register(s, selectors.EVENT_READ, port)
    print("ready", flush=True)
    while True:
        for key, _ in sel.select():
            if proto == "tcp":
                conn, peer = key.fileobj.accept()
                threading.Thread(target=tcp, args=(conn, key.data, peer), daemon=True).start()
            else:
                # The answer leaves from the address that was asked.
                data, control, _, peer = key.fileobj.recvmsg(65535, 256)
                data = prefix(key.data, peer, key.fileobj.getsockname()) + data
                key.fileobj.sendmsg([data], [(level, kind, without_interface(value)) for level, kind, value in control], 0, peer)


main()
