"""A local HTTP server for tests, whose answers are made by a function."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class LocalServer:
    """A running server."""

    answer: Callable[[bytes], tuple[int, bytes]]
    """status and body of the answer to the body of a request"""
    address: str = ""
    seen: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    """path, Authorization and body of each request"""


@contextmanager
def serving(answer: Callable[[bytes], tuple[int, bytes]], port: int = 0) -> Iterator[LocalServer]:
    """Run a server on this machine until the block ends."""
    server = LocalServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            server.seen.append((self.path, self.headers["Authorization"], body))
            status, content = server.answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
