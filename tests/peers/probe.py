"""Tries to reach an address, and says what came of it and how soon.

usage: probe.py tcp|udp ADDRESS PORT
prints "RESULT MILLISECONDS", RESULT being "ok" or the name of the error.
"""

import errno
import socket
import sys
import time

proto, addr, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in addr else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
s.settimeout(3)
begin = time.monotonic()
try:
    s.connect((addr, port))
    if proto == "udp":
        s.send(b"hello")
        s.recv(2000)
    result = "ok"
except TimeoutError as e:
    # The kernel's own time-out has an error number, that of settimeout() has none.
    result = errno.errorcode[e.errno] if e.errno else "silence"
except OSError as e:
    result = errno.errorcode[e.errno]
print(result, int((time.monotonic() - begin) * 1000))
