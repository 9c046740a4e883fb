"""The server from its start to its end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from types import FrameType

import uvicorn
from starlette.applications import Starlette

_CONNECTIONS = 256  # at once; more are refused
_PATIENCE = 2  # seconds that answers which are being sent may take when the server ends


class _Server(uvicorn.Server):
    """Ends at once: uploads that are on their way are not waited for."""

    def __init__(self, config: uvicorn.Config, ending: threading.Event) -> None:
        """Takes the event that ends waiting."""
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        self._ending.set()
        super().handle_exit(sig, frame)


def run(app: Starlette, host: str, port: int) -> None:
    """Serves until Ctrl-C, or until the process or its terminal is to end.

    Args:
      app: from `make_app`.
      host: address to listen on.
      port: 0 takes a free one. The address is printed.

    Raises:
      ValueError: it cannot listen there.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_PATIENCE,
    )
    server = _Server(config, app.state.ending)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, server.handle_exit)
    bare = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((bare, port))
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        listening.listen()
        shown = f"[{bare}]" if ":" in host else host
        print(f"open http://{shown}:{listening.getsockname()[1]} (Ctrl+C ends)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
