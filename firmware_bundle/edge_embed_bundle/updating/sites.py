"""Where static files come from: a web server, or a folder such as a stick's. One interface, and nothing trusted.

* A file is read from any byte on, up to any other. A server that knows no ranges is read from its start, and what was
  not asked for is dropped, so the caller never notices but by the time it takes.
* Nothing is kept: whoever reads stops when it has enough, and so an endless answer ends.
* A redirection is not followed: a repository has one address, and its owner's word for it.
* In a folder, a file is a plain file: links, pipes and devices of a stranger's stick are refused.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import os
import re
import socket
import ssl
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Any, Protocol

from edge_embed_bundle.errors import AbsentError, FetchError

#: How long a server may be silent.
SILENCE_SECONDS = 30.0

#: How long it may take from the first connection to the end of the headers.
HEADERS_SECONDS = 60.0

#: Bytes a second at which a server without ranges must send what was not asked for: no caller sees that it drips.
SLOWEST_BYTES = 2048

_CHUNK_BYTES = 64 * 1024
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)")


class StatusError(FetchError):
    """The server is there, and answers with something else than the file or its absence."""


class Site(Protocol):
    """A repository of static files."""

    @property
    def name(self) -> str:
        """What to call it in a message."""

    def exists(self, path: str) -> bool:
        """Return whether a file may be there: no is certain, yes is not."""

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """Yield the bytes of a file from ``start`` on, to its end or to before ``stop``.

        Raises:
            AbsentError: there is no such file.
            StatusError: the server says something else.
            FetchError: the file could not be read on.
        """


def open_site(address: str) -> Site:
    """Return the repository at an ``http://``, ``https://`` or ``file://`` address, or in a folder."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme in ("http", "https") and parts.hostname:
        return WebSite(address)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderSite(Path(urllib.request.url2pathname(parts.path)))
    if "://" in address:
        raise FetchError(f"{address}: expected a repository at http://, https:// or file://, or a folder")
    return FolderSite(Path(address))


class WebSite:
    """Static files of a web server. Proxies (``https_proxy``) are used, and so is a login in the address."""

    def __init__(
        self, address: str, *, silence_seconds: float = SILENCE_SECONDS, headers_seconds: float = HEADERS_SECONDS
    ) -> None:
        parts = urllib.parse.urlsplit(address.rstrip("/"))
        login, _, host = parts.netloc.rpartition("@")
        #: Without the login, which is nobody's business in a message.
        self.name = parts._replace(netloc=host).geturl()
        self._headers = {"User-Agent": "edge-embed", "Accept-Encoding": "identity"}
        if login:
            known = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
            self._headers["Authorization"] = f"Basic {known}"
        self._silence_seconds = silence_seconds
        self._opener = urllib.request.build_opener(
            _NoRedirection, _PlainHandler(headers_seconds), _SecureHandler(headers_seconds)
        )

    def exists(self, path: str) -> bool:
        """See :meth:`Site.exists`; costs no body, whatever page the server has for what is absent."""
        try:
            with self._opened("HEAD", path):
                return True
        except AbsentError:
            return False
        except _UnsupportedError:
            return True

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """See :meth:`Site.read`."""
        with self._opened("GET", path, start, stop) as answer, self._named(path):
            at = self._first_byte(path, answer, start)
            expected, began = answer.length, time.monotonic()
            while (stop is None or at < stop) and (chunk := answer.read1(_CHUNK_BYTES)):
                expected = None if expected is None else expected - len(chunk)
                wanted = chunk[max(0, start - at) : None if stop is None else stop - at]
                at += len(chunk)
                if wanted:
                    yield wanted
                elif time.monotonic() - began > self._silence_seconds + at / SLOWEST_BYTES:
                    raise FetchError(
                        f"{self.name}/{path}: expected {SLOWEST_BYTES} bytes a second before byte {start}, found {at}"
                    )
            if expected and (stop is None or at < stop):
                raise FetchError(f"{self.name}/{path}: expected {expected} bytes more, found the answer at its end")

    def _first_byte(self, path: str, answer: http.client.HTTPResponse, start: int) -> int:
        if answer.status == http.client.OK:
            return 0
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status != http.client.PARTIAL_CONTENT or found is None or int(found[1]) > start:
            raise StatusError(
                f"{self.name}/{path}: expected status 200, or 206 with a range from byte {start}, "
                f"found {answer.status} {answer.headers.get('Content-Range', 'without a range')[:60]!r}"
            )
        return int(found[1])

    @contextlib.contextmanager
    def _opened(
        self, method: str, path: str, start: int = 0, stop: int | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = dict(self._headers)
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-" + ("" if stop is None else f"{stop - 1}")
        request = urllib.request.Request(  # noqa: S310 (open_site lets http and https through alone)
            f"{self.name}/{urllib.parse.quote(path, safe='/%')}", headers=headers, method=method
        )
        with self._named(path):
            answer = self._opener.open(request, timeout=self._silence_seconds)
        with contextlib.closing(answer):
            yield answer

    @contextlib.contextmanager
    def _named(self, path: str) -> Iterator[None]:
        place = f"{self.name}/{path}"
        try:
            yield
        except urllib.error.HTTPError as error:
            error.close()
            # 403 is how some object stores say that there is nothing.
            if error.code in (403, 404, 410):
                raise AbsentError(f"{place}: expected a file, found status {error.code}") from error
            if error.code in (405, 501):
                raise _UnsupportedError(f"{place}: found status {error.code}") from error
            where = f" to {error.headers.get('Location', 'nowhere')[:100]!r}" if 300 <= error.code < 400 else ""
            raise StatusError(f"{place}: expected a file, found status {error.code}{where}") from error
        except urllib.error.URLError as error:
            raise FetchError(f"{place}: expected an answer, found: {error.reason}") from error
        except TimeoutError as error:
            raise FetchError(f"{place}: expected bytes within {self._silence_seconds:g} s, found none") from error
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise FetchError(f"{place}: expected an answer, found: {type(error).__name__} {error}"[:300]) from error


class _UnsupportedError(StatusError):
    """The server does not know the method."""


class _TimedConnection(http.client.HTTPConnection):
    """Ends itself where the headers are not there in time: a socket's own limit begins anew with every byte."""

    def __init__(self, *arguments: Any, headers_seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._headers_seconds = headers_seconds
        self._over = False

    def connect(self) -> None:
        """Connect, while the clock runs."""
        self._timer = threading.Timer(self._headers_seconds, self._give_up)
        self._timer.daemon = True
        self._timer.start()
        super().connect()
        # While there was no socket yet, there was none to end.
        self._in_time()

    def getresponse(self) -> http.client.HTTPResponse:
        """Return the answer, whose headers are there; the clock stops."""
        try:
            answer = super().getresponse()
        except (http.client.HTTPException, OSError):
            # What a socket says that was ended depends on what was still on its way: a line cut short, or a reset.
            self._in_time()
            raise
        finally:
            self._timer.cancel()
        if self._over:
            answer.close()
        self._in_time()
        return answer

    def _in_time(self) -> None:
        if self._over:
            raise http.client.HTTPException(f"headers without end in {self._headers_seconds:g} s")

    def _give_up(self) -> None:
        self._over = True
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _TimedSecureConnection(_TimedConnection, http.client.HTTPSConnection):
    """The same over TLS."""


class _PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, headers_seconds: float) -> None:
        super().__init__()
        self._connect = functools.partial(_TimedConnection, headers_seconds=headers_seconds)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connect, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, headers_seconds: float) -> None:
        super().__init__()
        self._connect = functools.partial(
            _TimedSecureConnection, headers_seconds=headers_seconds, context=ssl.create_default_context()
        )

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connect, req)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """Make no other request of it: the answer becomes an error that says where it pointed."""


class FolderSite:
    """Static files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        """See :meth:`Site.name`."""
        return str(self._folder)

    def exists(self, path: str) -> bool:
        """See :meth:`Site.exists`."""
        return (self._folder / path).is_file()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """See :meth:`Site.read`."""
        place = self._folder / path
        try:
            # O_NONBLOCK: opening a pipe must not wait for a writer.
            descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            kind = AbsentError if isinstance(error, FileNotFoundError) and self._folder.is_dir() else FetchError
            raise kind(f"{place}: expected a plain file, found: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FetchError(f"{place}: expected a plain file, found something else")
            while chunk := os.pread(
                descriptor, _CHUNK_BYTES if stop is None else min(_CHUNK_BYTES, stop - start), start
            ):
                start += len(chunk)
                yield chunk
        except OSError as error:
            raise FetchError(f"{place}: expected bytes from {start} on, found: {error.strerror}") from error
        finally:
            os.close(descriptor)
