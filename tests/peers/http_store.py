"""HTTP server: GET gives files of the directory, PUT answers with the SHA-256 of what was sent.

usage: http_store.py DIRECTORY ADDRESS PORT
"""

import hashlib
import http.server
import socket
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        h = hashlib.sha256()
        while left:
            data = self.rfile.read1(min(left, 1 << 20))
            if not data:
                return
            h.update(data)
            left -= len(data)
        answer = h.hexdigest().encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
    request_queue_size = 1024

    def finish_request(self, request, client_address):
        Handler(request, client_address, self, directory=sys.argv[1])


Server((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
