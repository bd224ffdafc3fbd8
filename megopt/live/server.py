"""The edge as a process or a thread: its listening socket, its signals, and who may reach it."""

from __future__ import annotations

import ipaddress
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from megopt.errors import ConfigError
from megopt.live.edge import create_app
from megopt.live.service import EdgeService
from megopt.live.telemetry import log_event

KEEP_ALIVE_S = 120
"""Time for which an idle connection is kept [s]: a device pays for a new one with round trips."""


def serve(
    service: EdgeService,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve until the process is told to stop; called from its main thread.

    Args:
        service: takes the requests.
        host: address to listen on.
        port: likewise.
        token: bearer token; needed off loopback.
        certificate: of TLS, with `key`; None for none.
        key: of the certificate.

    Raises:
        ConfigError: for an address off loopback without a token, a certificate without its key or one that cannot be
            read, or an address that cannot be listened on.
    """
    check_exposure(host, token)
    settings = {"timeout_graceful_shutdown": 10, "timeout_keep_alive": KEEP_ALIVE_S} | _encryption(certificate, key)
    server = uvicorn.Server(uvicorn.Config(create_app(service, token=token), log_level="warning", **settings))
    listener = _listener(host, port)
    # the kernel takes connections from here on
    log_event("listening", url=f"http{'s' if certificate else ''}://{host}:{port}", model=service.model)
    _run_until_told(server, listener)


def _run_until_told(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run a server until SIGINT or SIGTERM."""
    # uvicorn ends gracefully at these signals, and then raises them again: the caller still has something to say
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def served_in_thread(
    service: EdgeService, *, token: str | None = None, certificate: Path | None = None, key: Path | None = None
) -> Iterator[int]:
    """Serve on a free port of loopback while the context lasts, and yield the port: an edge within a program.

    Args:
        service: takes the requests; it is closed with the context.
        token: bearer token; None for none.
        certificate: as in `serve`.
        key: likewise.
    """
    app, settings = create_app(service, token=token, grace_s=2.0), _encryption(certificate, key)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, **settings))
    listener = _listener("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10.0)
        listener.close()


def _encryption(certificate: Path | None, key: Path | None) -> dict[str, Any]:
    """Return the settings of TLS, checked; none without a certificate."""
    if (certificate is None) != (key is None):
        message = "serve: a certificate and its key belong together; give both or none"
        raise ConfigError(message)
    if certificate is None or key is None:
        return {}
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        message = f"serve: certificate={certificate} key={key}: cannot be used ({error}); expected one pair in PEM"
        raise ConfigError(message) from error
    return {"ssl_certfile": certificate, "ssl_keyfile": key}


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        message = (
            f"serve: host={host} port={port} cannot be listened on ({error.strerror}); choose another port or host"
        )
        raise ConfigError(message) from error


def check_exposure(host: str, token: str | None) -> None:
    """Raise unless `host` is a loopback address or there is a token of 16 characters or more.

    Raises:
        ConfigError: otherwise.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if token is not None and (len(token) < 16 or not token.isascii()):
        message = "serve: the token is short or not ASCII; expected 16 ASCII characters or more"
        raise ConfigError(message)
    if not is_loopback and token is None:
        message = f"serve: host={host} is off loopback and there is no token; set token, or host=127.0.0.1"
        raise ConfigError(message)
