"""The process's metrics (Prometheus) and the page they are read from. Names start with `metalplane_`.

Labels are bounded by construction: method names, status codes, kinds; never an id. Services that share a process share
the registry, and the method name says which is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metal_kit.endpoint import parse_endpoint

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

RPC_SECONDS = Histogram(
    "metalplane_rpc_server_seconds",
    "Time from the first to the last moment of a call in the server, in seconds.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
RPC_TOTAL = Counter("metalplane_rpc_server_calls", "Calls that ended, by status code.", ["method", "code"])
RPC_RUNNING = Gauge("metalplane_rpc_server_running", "Calls and streams that are running now.", ["method"])
RPC_LIMITED = Counter(
    "metalplane_rpc_limited",
    "Calls that were refused because their caller had used up what he may, by reason and kind of caller.",
    ["reason", "kind"],
)
BACKGROUND_FAILURES = Counter(
    "metalplane_background_failures", "Background tasks that ended although they should not have.", ["task"]
)


class MethodMetrics:
    """The metrics of one method with their labels resolved once; resolving them costs more than counting."""

    def __init__(self, method: str) -> None:
        self._method = method
        self.running = 0
        # Counted in a plain number and read when somebody looks: a gauge costs a lock at each step.
        RPC_RUNNING.labels(method).set_function(lambda: self.running)
        self.seconds = RPC_SECONDS.labels(method)
        self._codes: dict[str, Counter] = {}

    def ended(self, code: str, seconds: float) -> None:
        """Count one call that ended."""
        counter = self._codes.get(code)
        if counter is None:
            counter = self._codes[code] = RPC_TOTAL.labels(self._method, code)
        counter.inc()
        self.seconds.observe(seconds)


def limited(reason: str, kind: str) -> None:
    """Count a call that was refused by `metal_kit.limits`."""
    RPC_LIMITED.labels(reason, kind).inc()


@dataclass
class MetricsPage:
    """The HTTP page at `/metrics`, served by a thread of its own so that a stalled loop still shows its metrics."""

    server: WSGIServer
    thread: Thread

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self.server.server_port

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def listen(
    endpoint: str,
    registry: CollectorRegistry = prometheus_client.REGISTRY,
    pages: Mapping[str, Callable[[], tuple[int, str]]] | None = None,
) -> MetricsPage:
    """Serve the metrics on `host:port`. Raises OSError when the address cannot be had.

    `pages` are served beside them, by path: each gives a status and a JSON text, in the page's thread.
    """
    host, port = parse_endpoint(endpoint)
    server, thread = prometheus_client.start_http_server(port, host, registry)
    if pages:
        server.set_app(_beside(prometheus_client.make_wsgi_app(registry), pages))
    return MetricsPage(server, thread)


def _beside(app: WSGIApplication, pages: Mapping[str, Callable[[], tuple[int, str]]]) -> WSGIApplication:
    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        page = pages.get(environ.get("PATH_INFO", ""))
        if page is None:
            return app(environ, start_response)
        status, text = page()
        start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Type", "application/json")])
        return [text.encode()]

    return serve
