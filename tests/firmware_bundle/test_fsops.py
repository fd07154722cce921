"""The real operations ask the system for what they promise: what cannot be synced says so."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_embed_bundle.fsops import OsFs, replace_file


def test_syncing_a_file_asks_the_system(tmp_path: Path) -> None:
    # A pipe is the file whose bytes no system can bring to a flash: fsync refuses it, and nothing else would.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with OsFs().overwrite(pipe) as file:
            file.write(b"written")
            assert os.read(reader, 100) == b"written"
            with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
                file.sync()
    finally:
        os.close(reader)


def test_syncing_a_folder_asks_the_system(tmp_path: Path) -> None:
    OsFs().sync_folder(tmp_path)
    # The folders of /proc stand on no flash.
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        OsFs().sync_folder(Path("/proc/self"))


def test_a_new_file_never_takes_the_place_of_another_and_cannot_be_written_again(tmp_path: Path) -> None:
    with OsFs().create(tmp_path / "file") as file:
        file.write(b"once")
        file.sync()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o444
    with pytest.raises(FileExistsError):
        OsFs().create(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"once"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for open_ in (OsFs().create, OsFs().overwrite):
        with pytest.raises(OSError, match=r"link"):
            open_(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_takes_only_part_of_what_is_written_is_an_error(tmp_path: Path) -> None:
    # A limit on the size of files makes the system write the first half and say so by a number.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with OsFs().create(tmp_path / "file") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                file.write(bytes(8192))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_reserved_room_is_taken_reads_as_zeros_and_is_written_from_any_place_on(tmp_path: Path) -> None:
    fs, path = OsFs(), tmp_path / "reserved"
    fs.reserve(path, 300_000)
    assert path.stat().st_blocks * 512 >= 300_000
    with pytest.raises(FileExistsError):
        fs.reserve(path, 1)
    with fs.overwrite(path, offset=200_000) as file:
        file.write(b"here")
        file.seal()
        file.sync()
    assert path.read_bytes() == bytes(200_000) + b"here" + bytes(99_996)
    assert path.stat().st_mode & 0o777 == 0o444


def test_room_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="reserved"):
        OsFs().reserve(tmp_path / "reserved", 2**60)


def test_a_small_file_is_replaced_as_a_whole_whatever_was_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    (tmp_path / ".partial-last.json").write_bytes(b"cut off")
    replace_file(OsFs(), path, b"one")
    replace_file(OsFs(), path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@contextlib.contextmanager
def _a_user() -> Iterator[None]:
    """Be somebody whom the system asks for permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_was_sealed_before_it_got_its_name_is_written_on_by_its_owner() -> None:
    # Not in pytest's folder, which another user does not enter.
    with _a_user(), tempfile.TemporaryDirectory() as place:
        path = Path(place) / "file"
        OsFs().reserve(path, 4)
        for offset, data in ((0, b"abcd"), (2, b"xy")):
            with OsFs().overwrite(path, offset=offset) as file:
                file.write(data)
                file.seal()
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"abxy", 0o444)
