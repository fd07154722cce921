"""The real operations ask the system for what they promise: what cannot be synced says so."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from edge_embed_bundle.fsops import OsFs


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
