"""Answers every request with the page that came on stdin: python -m quire_cluster.impostor PORT.

faults.impersonate starts it in a pod's network, in place of the engine.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def server(port: int, page: bytes) -> ThreadingHTTPServer:
    class Impostor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            """Nobody reads it."""

    return ThreadingHTTPServer(("", port), Impostor)


if __name__ == "__main__":
    server(int(sys.argv[1]), sys.stdin.buffer.read()).serve_forever()
