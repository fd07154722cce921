"""Static files from a real web server, a folder, a stick; frames that are verified and resumed."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_embed_bundle.errors import AbsentError, FetchError
from edge_embed_bundle.fsops import OsFs
from edge_embed_bundle.updating.fetching import ATTEMPTS, fetch, frames_done, partial_path, reserve
from edge_embed_bundle.updating.releases import FRAME_BYTES, File, blob_path
from edge_embed_bundle.updating.sites import FolderSite, WebSite, open_site
from tests.fakes import bad_servers
from tests.fakes.bad_servers import Fault, RepositoryServer

# Two whole frames and a bit.
DATA = os.urandom(2 * FRAME_BYTES + 1000)
SHA256 = hashlib.sha256(DATA).hexdigest()
FILE = File(
    "table.bin",
    len(DATA),
    SHA256,
    tuple(hashlib.sha256(DATA[i : i + FRAME_BYTES]).hexdigest() for i in range(0, len(DATA), FRAME_BYTES)),
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "blobs").mkdir(parents=True)
    (folder / blob_path(SHA256)).write_bytes(DATA)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming" / FILE.name


def _fetch(server: RepositoryServer, target: Path, frame_seconds: float = 60.0) -> int:
    reserve(FILE, target, OsFs())
    site = WebSite(server.address, silence_seconds=1.0)
    return fetch(site, FILE, target, OsFs(), pause=lambda seconds: None, frame_seconds=frame_seconds)


# Sites.


def test_a_file_is_read_from_any_byte_on_wherever_it_stands(site: Path) -> None:
    with RepositoryServer(site) as server:
        for place in (WebSite(server.address), FolderSite(site)):
            for start in (0, 1, FRAME_BYTES, len(DATA) - 1):
                assert b"".join(place.read(blob_path(SHA256), start)) == DATA[start:]
                for stop in (start + 1, min(start + FRAME_BYTES + 5, len(DATA))):
                    assert b"".join(place.read(blob_path(SHA256), start, stop)) == DATA[start:stop]
            assert place.exists(blob_path(SHA256))
            assert not place.exists("metadata/7.root.json")
            with pytest.raises(AbsentError, match="expected a"):
                next(place.read("metadata/7.root.json"))


def test_a_server_that_knows_no_ranges_drops_what_was_not_asked_for_and_not_for_ever(site: Path) -> None:
    with RepositoryServer(site, bad_servers.without_ranges("blobs")) as server:
        found = WebSite(server.address).read(blob_path(SHA256), FRAME_BYTES - 1, FRAME_BYTES + 1)
        assert b"".join(found) == DATA[FRAME_BYTES - 1 : FRAME_BYTES + 1]
    with (
        RepositoryServer(site, bad_servers.dripping("blobs", 0.01)) as server,
        pytest.raises(FetchError, match="2048 bytes a second before byte 1048576"),
    ):
        next(WebSite(server.address, silence_seconds=0.3).read(blob_path(SHA256), FRAME_BYTES))


def test_asking_whether_a_file_exists_costs_no_body(site: Path) -> None:
    with RepositoryServer(site) as server:
        WebSite(server.address).exists("metadata/7.root.json")
        assert [asked.method for asked in server.asked] == ["HEAD"]
        assert server.body_bytes == 0


def test_a_server_that_knows_no_head_is_asked_for_the_file(site: Path) -> None:
    with RepositoryServer(site, bad_servers.without_head) as server:
        assert WebSite(server.address).exists(blob_path(SHA256))


def test_a_server_without_ranges_is_read_from_its_start(site: Path) -> None:
    with RepositoryServer(site, bad_servers.without_ranges("blobs")) as server:
        assert b"".join(WebSite(server.address).read(blob_path(SHA256), 5000)) == DATA[5000:]


def test_addresses_name_their_sites(site: Path, tmp_path: Path) -> None:
    assert open_site("https://user:secret@updates.example/notes/").name == "https://updates.example/notes"
    assert b"".join(open_site(f"file://{site}").read(blob_path(SHA256))) == DATA
    assert b"".join(open_site(str(site)).read(blob_path(SHA256))) == DATA
    for address in ("ftp://updates.example", "http://", "file://elsewhere/site"):
        with pytest.raises(FetchError, match="expected a repository at"):
            open_site(address)


def test_a_login_is_given_to_the_server_and_to_nobody_else(site: Path) -> None:
    seen = []

    def gate(request: bad_servers.Request, path: str, data: bytes) -> bool:
        seen.append(request.headers.get("Authorization"))
        if seen[-1] != f"Basic {base64.b64encode(b'board:s@cret').decode()}":
            request.send(401, b"")
            return True
        return False

    with RepositoryServer(site, gate) as server:
        address = server.address.replace("//", "//board:s%40cret@")
        assert b"".join(open_site(address).read(blob_path(SHA256))) == DATA
        with pytest.raises(FetchError, match="status 401") as caught:
            next(open_site(address.replace("s%40cret", "wrong")).read(blob_path(SHA256)))
        assert "wrong" not in str(caught.value)
    assert len(seen) == 2


def test_what_is_no_plain_file_of_a_stick_is_refused_and_nobody_waits(site: Path) -> None:
    os.mkfifo(site / "pipe")
    (site / "link").symlink_to(site / blob_path(SHA256))
    for name in ("pipe", "link", "blobs"):
        with pytest.raises(FetchError, match="expected a plain file"):
            next(FolderSite(site).read(name))


def test_a_stick_that_is_not_there_is_no_repository_without_files(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        next(FolderSite(tmp_path / "stick").read("metadata/timestamp.json"))
    assert not isinstance(caught.value, AbsentError)


# Frames.


def test_a_file_arrives_sealed_under_its_name(site: Path, target: Path) -> None:
    with RepositoryServer(site) as server:
        assert _fetch(server, target) == len(DATA)
    assert target.read_bytes() == DATA
    assert target.stat().st_mode & 0o777 == 0o444
    assert not partial_path(target).exists()


def test_the_room_is_taken_before_a_byte_is_asked_for(target: Path) -> None:
    reserve(FILE, target, OsFs())
    status = partial_path(target).stat()
    assert (status.st_size, status.st_blocks * 512 >= len(DATA)) == (len(DATA), True)
    assert frames_done(partial_path(target), FILE) == 0


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_fetch_goes_on_behind_the_frames_that_are_right(site: Path, target: Path, whole: int) -> None:
    reserve(FILE, target, OsFs())
    with partial_path(target).open("r+b") as file:
        file.write(DATA[: whole * FRAME_BYTES + 500])
    with RepositoryServer(site) as server:
        assert _fetch(server, target) == len(DATA) - whole * FRAME_BYTES
        assert [asked.range for asked in server.asked] == [f"bytes={whole * FRAME_BYTES}-" if whole else ""]
    assert target.read_bytes() == DATA


def test_a_frame_that_rotted_meanwhile_is_fetched_again(site: Path, target: Path) -> None:
    reserve(FILE, target, OsFs())
    partial_path(target).write_bytes(DATA[:FRAME_BYTES] + bytes(10) + DATA[FRAME_BYTES + 10 :])
    with RepositoryServer(site) as server:
        assert _fetch(server, target) == len(DATA) - FRAME_BYTES
    assert target.read_bytes() == DATA


def test_a_file_that_is_there_and_lacks_its_name_alone_is_not_fetched(site: Path, target: Path) -> None:
    reserve(FILE, target, OsFs())
    partial_path(target).write_bytes(DATA)
    with RepositoryServer(site) as server:
        assert _fetch(server, target) == 0
        assert not server.asked
    assert target.read_bytes() == DATA


def test_connections_that_break_are_taken_up_where_they_broke(site: Path, target: Path) -> None:
    with RepositoryServer(site, bad_servers.resetting("blobs", FRAME_BYTES + 10, times=2)) as server:
        assert _fetch(server, target) == len(DATA)
        assert [asked.range for asked in server.asked] == ["", f"bytes={FRAME_BYTES}-", f"bytes={2 * FRAME_BYTES}-"]
    assert target.read_bytes() == DATA


def test_a_line_that_never_carries_a_frame_is_given_up(site: Path, target: Path) -> None:
    with RepositoryServer(site, bad_servers.resetting("blobs", 1000, times=99)) as server:
        with pytest.raises(FetchError):
            _fetch(server, target)
        assert len(server.asked) == ATTEMPTS


@pytest.mark.parametrize(
    ("fault", "match", "kept"),
    [
        (bad_servers.wrong("blobs", FRAME_BYTES), "frame 1: expected sha256", 1),
        (bad_servers.wrong("blobs"), "frame 2: expected sha256", 2),
        (bad_servers.truncated("blobs"), "bytes more, found the answer at its end", 1),
        (bad_servers.shortened("blobs"), "found the end after", 1),
        (bad_servers.silent("blobs", 2.0), "expected (an answer|bytes within 1 s)", 0),
        (bad_servers.saying("blobs", 404), "found status 404", 0),
        (bad_servers.saying("blobs", 500), "found status 500", 0),
        (bad_servers.redirecting("blobs", "http://elsewhere.example/"), "status 302 to 'http://elsewhere", 0),
        (bad_servers.garbage("blobs"), "expected an answer, found", 0),
        (bad_servers.replacing("blobs", b""), "found the end after 0", 0),
    ],
)
def test_what_a_bad_server_sends_is_refused_in_one_sentence_and_what_was_right_stays(
    site: Path, target: Path, fault: Fault, match: str, kept: int
) -> None:
    with RepositoryServer(site, fault) as server, pytest.raises(FetchError, match=match) as caught:
        _fetch(server, target)
    assert "\n" not in str(caught.value)
    assert server.address in str(caught.value)
    assert not target.exists()
    assert frames_done(partial_path(target), FILE) == kept


def test_an_answer_without_end_is_left_when_the_file_is_there(site: Path, target: Path) -> None:
    with RepositoryServer(site, bad_servers.endless("blobs")) as server:
        assert _fetch(server, target) == len(DATA)
        # What the sockets between hold was sent, and not read.
        assert server.body_bytes < 5 * len(DATA)
    assert target.read_bytes() == DATA


def test_another_range_than_the_one_asked_for_is_refused(site: Path, target: Path) -> None:
    reserve(FILE, target, OsFs())
    with partial_path(target).open("r+b") as file:
        file.write(DATA[:FRAME_BYTES])
    with (
        RepositoryServer(site, bad_servers.wrong_range("blobs")) as server,
        pytest.raises(FetchError, match="206 with a range from byte 1048576"),
    ):
        _fetch(server, target)


def test_a_server_that_drips_is_left_after_the_time_of_a_frame(site: Path, target: Path) -> None:
    started = time.monotonic()
    with (
        RepositoryServer(site, bad_servers.dripping("blobs", 0.02)) as server,
        pytest.raises(FetchError, match=r"expected a frame of 1 MiB within 0\.2 s"),
    ):
        _fetch(server, target, frame_seconds=0.2)
    assert time.monotonic() - started < 10


# Without a pause, there is nearly always a byte on its way when the time is over, and the socket says "reset".
@pytest.mark.parametrize("pause", [0.02, 0.0])
def test_a_server_that_drips_its_headers_is_left_after_their_time(site: Path, pause: float) -> None:
    started = time.monotonic()
    with RepositoryServer(site, bad_servers.dripping_headers("blobs", pause)) as server:
        slow = WebSite(server.address, silence_seconds=5.0, headers_seconds=0.4)
        with pytest.raises(FetchError, match=r"headers without end in 0\.4 s"):
            next(slow.read(blob_path(SHA256)))
    assert time.monotonic() - started < 4


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(site: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, and Python makes no certificates")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-nodes"]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", *subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    with RepositoryServer(site) as server:
        address = server.secured(certificate, key)
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            next(WebSite(address).read(blob_path(SHA256)))
        body = """
import sys
from edge_embed_bundle.updating.sites import open_site
print(sum(map(len, open_site(sys.argv[1]).read(sys.argv[2]))))
"""
        trusting = {**os.environ, "SSL_CERT_FILE": str(certificate)}
        words = [sys.executable, "-c", body, address, blob_path(SHA256)]
        done = subprocess.run(words, env=trusting, capture_output=True, text=True, check=False)
        assert done.stdout == f"{len(DATA)}\n", done.stderr


def test_a_file_of_no_bytes_is_made_without_asking(site: Path, target: Path) -> None:
    empty = File("empty.bin", 0, hashlib.sha256(b"").hexdigest(), ())
    reserve(empty, target, OsFs())
    assert fetch(FolderSite(site), empty, target, OsFs()) == 0
    assert target.read_bytes() == b""
