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
                data, peer = key.fileobj.recvfrom(65535)
                key.fileobj.sendto(prefix(key.data, peer, key.fileobj.getsockname()) + data, peer)


main()
