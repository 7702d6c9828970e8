"""The loopback listener that the browser comes back to (RFC 8252, section 7.3), for one login."""

from __future__ import annotations

import hmac
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

PATH = "/callback"
_HOST = "127.0.0.1"


class Listener:
    """Waits for the answer that has our `state`; everything else is turned away and changes nothing.

    Each connection has a thread of its own: browsers open some in advance, and say nothing on them.
    """

    def __init__(self, state: str, port: int = 0) -> None:
        """Raises OSError when the port is taken."""
        self._answers: queue.Queue[dict[str, str]] = queue.Queue(maxsize=1)
        answers = self._answers

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                given = dict(parse_qsl(parts.query))
                if parts.path != PATH:
                    self._say(404, "There is nothing here.")
                elif not hmac.compare_digest(given.get("state", "").encode(), state.encode()):
                    self._say(400, "This answer belongs to another login. Nothing was done with it.")
                else:
                    self._say(200, "Go back to the terminal: metalctl says there how it ended. Close this page.")
                    try:
                        answers.put_nowait(given)
                    except queue.Full:
                        return

            def _say(self, status: int, text: str) -> None:
                body = f"{text}\n".encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Referrer-Policy", "no-referrer")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Nothing: the code is in the line that would be logged."""

        self._server = ThreadingHTTPServer((_HOST, port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def redirect_uri(self) -> str:
        """Where the browser is sent back to."""
        return f"http://{_HOST}:{self._server.server_port}{PATH}"

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def wait(self, seconds: float) -> dict[str, str] | None:
        """The parameters of the answer; None when none has come in time."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
