"""The device's side of the socket: calls with a time limit each, and frames as they come."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType

import httpx

from megopt.errors import ConfigError, MegoptError, PayloadError
from megopt.live.messages import Capabilities, Request
from megopt.live.wire import DEFAULT_LIMITS, Frame, FrameLimits, FrameReader

CALL_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 2.0


class LinkError(MegoptError):
    """Raised when the edge cannot be reached, or the link is lost: the device goes on alone."""


class BusyError(LinkError):
    """Raised when the edge does not take a request.

    Attributes:
        retry_after_s: when it may [s]; None where it will not.
    """

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefusedByEdgeError(LinkError):
    """Raised when the edge will not do what was asked, however often: no token, another content, unknown."""


class Connection:
    """One session with an edge; all its calls go over connections that are kept.

    Use it as `async with Connection(url) as connection`.

    An edge of https must show a certificate that is signed by one in `certificate`, or by those that httpx knows.

    Attributes:
        limits: of the frames that are taken.

    Raises:
        ConfigError: for a url that is no address of an edge, or a certificate that cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        certificate: str | Path | None = None,
        limits: FrameLimits = DEFAULT_LIMITS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        _check_address(url, certificate)
        self.limits = limits
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # whole calls are limited below; a single read may wait as long as the caller lets it
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S, write=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            verify=True if certificate is None else _trusting(certificate),
            timeout=timeout,
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def capabilities(self, timeout_s: float = CALL_TIMEOUT_S) -> Capabilities:
        """Return what the edge can do and how busy it is.

        Raises:
            LinkError: if it does not answer within `timeout_s` [s].
            PayloadError: if it answers something else.
        """
        async with _lost_link(timeout_s):
            answer = await self._client.get("/v1/capabilities")
        check_status(answer)
        try:
            return Capabilities.of_plain(answer.json())
        except ValueError as error:
            message = f"capabilities: {error}; is there a megopt edge at that address?"
            raise PayloadError(message) from error

    async def probe(self, num_bytes: int, timeout_s: float = CALL_TIMEOUT_S) -> float:
        """Return how long the call takes that brings `num_bytes` [s].

        Raises:
            LinkError: if they do not come within `timeout_s` [s].
        """
        begun_s = time.monotonic()
        async with _lost_link(timeout_s):
            answer = await self._client.get("/v1/probe", params={"num_bytes": num_bytes})
        check_status(answer)
        return time.monotonic() - begun_s

    async def frames(self, request: Request) -> AsyncGenerator[Frame, None]:
        """Send a request, and yield the frames of the answer as they come; the caller limits the time.

        Sending the same request again is safe: the edge knows it by its id, and computes it once.

        Raises:
            BusyError: if the edge does not take it now.
            RefusedByEdgeError: if it never will.
            LinkError: if the link is lost, or the answer ends within a frame.
            PayloadError: for a damaged frame.
        """
        content = request.frame().to_bytes()
        reader = FrameReader(self.limits)
        async with _lost_link(None), self._client.stream("POST", "/v1/requests", content=content) as answer:
            if answer.status_code != httpx.codes.OK:
                await answer.aread()
                check_status(answer)
            async for chunk in answer.aiter_raw():
                for frame in reader.feed(chunk):
                    yield frame
        if not reader.is_empty:
            message = "link: the answer ended within a frame; receive it again"
            raise LinkError(message)

    async def cancel(self, request_id: str, timeout_s: float = CALL_TIMEOUT_S) -> bool:
        """Tell the edge to stop a request; return whether it heard it in time and had not yet ended it."""
        try:
            async with _lost_link(timeout_s):
                answer = await self._client.delete(f"/v1/requests/{request_id}")
        except LinkError:
            return False
        return answer.status_code == httpx.codes.NO_CONTENT


def _check_address(url: str, certificate: str | Path | None) -> None:
    try:
        address = httpx.URL(url)
        address.host.encode("idna")  # as it is looked up
        is_port = address.port is None or 0 < address.port < 65_536
        is_known = address.scheme in ("http", "https") and address.host != "" and is_port
    except (httpx.InvalidURL, UnicodeError):
        is_known = False
    if not is_known:
        message = (
            f"edge={url[:100]}: no address; expected http://host:port or https://host:port; give the one that "
            "`megopt serve` says it listens on"
        )
        raise ConfigError(message)
    if certificate is not None and address.scheme != "https":
        message = (
            f"edge={url[:100]} with a certificate: nothing is encrypted over http; expected https://host:port; serve "
            "with certificate and key, or leave the certificate away"
        )
        raise ConfigError(message)


def _trusting(certificate: str | Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificate)
    except (OSError, ValueError) as error:
        message = (
            f"certificate={certificate}: cannot be read ({error}); expected PEM; give whom the edge's is signed by"
        )
        raise ConfigError(message) from error


@asynccontextmanager
async def _lost_link(timeout_s: float | None) -> AsyncIterator[None]:
    """Give everything that can happen to a link one name."""
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            yield
    except httpx.HTTPError as error:
        message = f"link: {type(error).__name__} {error}; is the edge running, and reachable?".replace("  ", " ")
        raise LinkError(message) from error
    except TimeoutError as error:
        if not limit.expired():
            raise
        message = f"link: no answer within {timeout_s:g} s; is the edge running, and reachable?"
        raise LinkError(message) from error


def check_status(answer: httpx.Response) -> None:
    """Raise unless the edge has done what was asked.

    Raises:
        BusyError: if it may do it later.
        RefusedByEdgeError: if it never will.
        LinkError: if it failed, or heard something damaged (400).
    """
    if answer.is_success:
        return
    try:
        content = answer.json()
        text, after = str(content.get("error", content)), content.get("retry_after_s")
    except (ValueError, AttributeError):
        text, after = answer.text[:200], None
    message = f"edge: it answers {answer.status_code}: {text}"
    is_number = isinstance(after, int | float) and not isinstance(after, bool)
    if answer.status_code in (429, 503):
        raise BusyError(message, float(after) if is_number else None)
    is_final = answer.is_client_error and answer.status_code != httpx.codes.BAD_REQUEST
    raise (RefusedByEdgeError if is_final else LinkError)(message)
