"""A web server for repositories that can behave as badly as any on the Internet.

``RepositoryServer`` hands out the files of a folder, with ranges, and remembers what it was asked and how many bytes of
bodies it sent. A *fault* is asked first: it is given the request, the path and the file's bytes, and either answers in
its own way and returns true, or lets the server answer.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import unquote

_PACKET_BYTES = 32 * 1024

Fault: TypeAlias = "Callable[[Request, str, bytes], bool]"


@dataclass(frozen=True)
class Asked:
    """One request as it was seen."""

    method: str
    path: str
    range: str


class Request(http.server.BaseHTTPRequestHandler):
    """One request; faults answer through it."""

    server: Any
    protocol_version = "HTTP/1.0"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        keeper: RepositoryServer = self.server.keeper
        path = self.path.lstrip("/")
        keeper.asked.append(Asked(self.command, path, self.headers.get("Range", "")))
        # As it was asked for, or without the spelling of what an address may not hold.
        file = next((f for f in (keeper.folder / path, keeper.folder / unquote(path)) if f.is_file()), keeper.folder)
        data = file.read_bytes() if file.is_file() else None
        with contextlib.suppress(ConnectionError):
            if keeper.fault is not None and keeper.fault(self, path, b"" if data is None else data):
                return
            if data is None:
                self.send(404, b"<html>there is nothing here, and this page says so at length</html>")
            else:
                self.send_ranged(data)

    def send_ranged(self, data: bytes) -> None:
        """Answer as a good server does."""
        asked = self.headers.get("Range", "")
        if not asked:
            self.send(200, data)
            return
        start, _, last = asked.removeprefix("bytes=").partition("-")
        first, stop = int(start), min(int(last) + 1, len(data)) if last else len(data)
        if first >= len(data):
            self.send(416, b"")
            return
        self.send(206, data[first:stop], {"Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int | None = -1) -> None:
        """Answer with a status and a body; ``length`` lies about it, None says nothing."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        if self.command != "HEAD":
            self.write(body)

    def write(self, body: bytes) -> None:
        """Send bytes of a body, as fast as the link is, and count them."""
        keeper: RepositoryServer = self.server.keeper
        for at in range(0, len(body), _PACKET_BYTES):
            packet = body[at : at + _PACKET_BYTES]
            if keeper.link_bytes_per_second:
                time.sleep(len(packet) / keeper.link_bytes_per_second)
            self.wfile.write(packet)
            keeper.body_bytes += len(packet)

    def reset(self) -> None:
        """End the connection as a router does that lost its power."""
        self.wfile.flush()
        # What the other side has not read yet dies with the connection.
        time.sleep(0.2)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@dataclass
class RepositoryServer:
    """Serves a folder on a port of its own. Use as a context manager."""

    folder: Path
    fault: Fault | None = None
    asked: list[Asked] = field(default_factory=list)
    body_bytes: int = 0
    #: None: as fast as can be.
    link_bytes_per_second: int | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def secured(self, certificate: Path, key: Path) -> str:
        """Speak TLS from now on; return the address."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        return f"https://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.keeper = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# Faults. Each is for the paths that begin so.


def _for(prefix: str, act: Callable[[Request, bytes], None]) -> Fault:
    def fault(request: Request, path: str, data: bytes) -> bool:
        if not path.startswith(prefix) or (request.command == "HEAD"):
            return False
        act(request, data)
        return True

    return fault


def silent(prefix: str, seconds: float) -> Fault:
    """Takes the question and says nothing."""
    return _for(prefix, lambda request, data: time.sleep(seconds))


def dripping(prefix: str, pause: float) -> Fault:
    """Sends a byte now and then, always in time for whoever only waits for the next one."""

    def act(request: Request, data: bytes) -> None:
        request.send(200, b"", length=len(data))
        for i in range(len(data)):
            request.write(data[i : i + 1])
            time.sleep(pause)

    return _for(prefix, act)


def dripping_headers(prefix: str, pause: float) -> Fault:
    """Sends its headers a letter at a time, and there is always one more."""

    def act(request: Request, data: bytes) -> None:
        request.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while True:
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(pause)

    return _for(prefix, act)


def endless(prefix: str) -> Fault:
    """Begins with the right bytes and never stops."""

    def act(request: Request, data: bytes) -> None:
        request.send(200, data, length=None)
        while True:
            request.write(bytes(65536))

    return _for(prefix, act)


def truncated(prefix: str, kept: float = 0.5) -> Fault:
    """Promises all and sends a part."""
    return _for(prefix, lambda request, data: request.send(200, data[: int(len(data) * kept)], length=len(data)))


def shortened(prefix: str) -> Fault:
    """Sends a part as if it were all."""
    return _for(prefix, lambda request, data: request.send(200, data[: len(data) // 2]))


def wrong(prefix: str, at: int = -1) -> Fault:
    """Changes one bit."""

    def act(request: Request, data: bytes) -> None:
        changed = bytearray(data)
        changed[at] ^= 1
        request.send_ranged(bytes(changed))

    return _for(prefix, act)


def without_ranges(prefix: str) -> Fault:
    """Sends everything, whatever was asked for."""
    return _for(prefix, lambda request, data: request.send(200, data))


def wrong_range(prefix: str) -> Fault:
    """Sends another range than the one that was asked for."""
    return _for(
        prefix,
        lambda request, data: request.send(206, data[-1:], {"Content-Range": f"bytes {len(data) - 1}-{len(data)}/9"}),
    )


def redirecting(prefix: str, target: str) -> Fault:
    """Sends whoever asks somewhere else."""
    return _for(prefix, lambda request, data: request.send(302, b"", {"Location": target}))


def saying(prefix: str, status: int) -> Fault:
    """Answers with a status and nothing else."""
    return _for(prefix, lambda request, data: request.send(status, b""))


def replacing(prefix: str, body: bytes) -> Fault:
    """Answers with something else."""
    return _for(prefix, lambda request, data: request.send(200, body))


def garbage(prefix: str) -> Fault:
    """Does not speak HTTP."""

    def act(request: Request, data: bytes) -> None:
        request.wfile.write(b"\x00\xff" * 500)

    return _for(prefix, act)


def resetting(prefix: str, every: int, times: int) -> Fault:
    """Breaks the connection after ``every`` bytes, so many times; then it is a good server."""
    left = [times]

    def fault(request: Request, path: str, data: bytes) -> bool:
        if not path.startswith(prefix) or left[0] == 0:
            return False
        left[0] -= 1
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        part = data[start : start + every]
        request.send(
            206, part, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, length=len(data) - start
        )
        request.reset()
        return True

    return fault


def without_head(request: Request, path: str, data: bytes) -> bool:
    """Knows GET alone."""
    if request.command != "HEAD":
        return False
    request.send(501, b"")
    return True
