"""A bundle is written section by section, durably, and has its name only when it is whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import BundleError, ManifestError
from edge_embed_bundle.fsops import FsOps, OsFs, WritableFile
from edge_embed_bundle.manifest import MANIFEST_NAME, Budgets, Manifest, Requirements, TableModel
from edge_embed_bundle.values import SECTION_BYTES, Blob, Space, Tensor
from edge_embed_bundle.writer import BlobWriter, BundleWriter, aligned

ROWS = np.arange(60, dtype="<f4").reshape(20, 3)
NORMS = np.ones(20, "<f4")


class RecordingFs:
    """``FsOps`` on the real file system that notes each step: what was done, and to which name."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self._real = OsFs()

    def create(self, path: Path, *, mode: int = 0o444) -> WritableFile:
        self.steps.append(("create", path.name))
        return _RecordingFile(self._real.create(path, mode=mode), path.name, self.steps)

    def overwrite(self, path: Path, *, offset: int = 0) -> WritableFile:
        raise AssertionError("a bundle is never changed in place")

    def reserve(self, path: Path, size_bytes: int) -> None:
        raise AssertionError("an exporter takes no room ahead")

    def link(self, source: Path, target: Path) -> None:
        raise AssertionError("an exporter links nothing")

    def make_folder(self, path: Path) -> None:
        self._do("make_folder", path, self._real.make_folder)

    def rename(self, source: Path, target: Path) -> None:
        self._do("rename to", target, lambda target: self._real.rename(source, target))

    def unlink(self, path: Path) -> None:
        self._do("unlink", path, self._real.unlink)

    def remove_folder(self, path: Path) -> None:
        self._do("remove_folder", path, self._real.remove_folder)

    def sync_folder(self, path: Path) -> None:
        self._do("sync_folder", path, self._real.sync_folder)

    def _do(self, kind: str, path: Path, do: Callable[[Path], None]) -> None:
        self.steps.append((kind, path.name))
        do(path)


class _RecordingFile:
    def __init__(self, real: WritableFile, name: str, steps: list[tuple[str, str]]) -> None:
        self._real, self._name, self._steps = real, name, steps

    def write(self, data: bytes | memoryview) -> None:
        self._steps.append(("write", self._name))
        self._real.write(data)

    def sync(self) -> None:
        self._steps.append(("sync", self._name))
        self._real.sync()

    def seal(self) -> None:
        self._real.seal()

    def __enter__(self) -> Self:
        self._real.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._real.__exit__(kind, error, trace)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def _write(target: Path, *, version: str = "1.0.0", replace: bool = False, fs: FsOps | None = None) -> Manifest:
    """Write a small bundle of two blobs: a header and two sections in one, a section in the other."""
    tensors: dict[str, Tensor] = {}

    def rows(blob: BlobWriter) -> None:
        blob.write(b"header")
        tensors["rows"] = blob.section((ROWS[:7].data, ROWS[7:].data), dtype="float32", shape=ROWS.shape)
        tensors["key_bytes"] = blob.section([b"abc"], dtype="uint8", shape=(3,))

    def norms(blob: BlobWriter) -> None:
        tensors["norms"] = blob.section([NORMS.tobytes()], dtype="float32", shape=NORMS.shape)
        offsets = np.zeros(21, "<u4")
        tensors["key_offsets"] = blob.section([offsets.data], dtype="uint32", shape=offsets.shape)

    with BundleWriter(target, replace=replace, fs=fs) as writer:
        writer.blob("rows.bin", rows)
        writer.blob("norms.bin", norms)
        return writer.finish(lambda blobs: _manifest(tensors, blobs, version))


def _manifest(tensors: dict[str, Tensor], blobs: dict[str, Blob], version: str = "1.0.0") -> Manifest:
    return Manifest(
        name="written",
        version=version,
        space=Space("0" * 64, 3, "cosine", "numbers in order"),
        models=(TableModel("table", "float32", 20, 3, tensors),),
        blobs=blobs,
        requirements=Requirements(("codec-float32",), 1000),
        budgets=Budgets(None, 1000, {}),
        quality={},
        golden=(),
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.integers(0, 2**48))
def test_a_section_starts_on_the_first_boundary_that_is_free(offset: int) -> None:
    start = aligned(offset)
    assert start % SECTION_BYTES == 0 and 0 <= start - offset < SECTION_BYTES


def test_sections_lie_on_boundaries_with_zeros_between_them(target: Path) -> None:
    manifest = _write(target)
    tensors = manifest.tables[0].tensors
    assert [tensors[name].offset_bytes for name in ("rows", "key_bytes", "norms", "key_offsets")] == [
        *(SECTION_BYTES, 2 * SECTION_BYTES),
        *(0, SECTION_BYTES),
    ]
    data = (target / "rows.bin").read_bytes()
    assert data == b"header".ljust(SECTION_BYTES, b"\0") + ROWS.tobytes().ljust(SECTION_BYTES, b"\0") + b"abc"
    with Bundle.open(target) as bundle:
        bundle.verify()
        assert bundle.tensor(tensors["norms"]) == NORMS.tobytes()


def test_the_manifest_that_is_returned_is_the_one_on_disk(target: Path) -> None:
    manifest = _write(target)
    assert (target / MANIFEST_NAME).read_bytes() == manifest.to_bytes()
    assert manifest.blobs == {
        name: Blob(len(data), hashlib.sha256(data).hexdigest())
        for name, data in _files(target).items()
        if name != MANIFEST_NAME
    }


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    _write(tmp_path / "one")
    _write(tmp_path / "two")
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_files_are_read_only_for_everyone(target: Path) -> None:
    umask = os.umask(0o022)
    try:
        _write(target)
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o444}


def test_a_section_of_another_size_than_its_shape_is_a_mistake_of_the_caller(target: Path) -> None:
    with BundleWriter(target) as writer, pytest.raises(ValueError, match=r"x\.bin: int8 of \(3, 4\) needs 12 bytes"):
        writer.blob("x.bin", lambda blob: blob.section([b"11 bytes..."], dtype="int8", shape=(3, 4)) and None)


class BreakageError(Exception):
    """Something goes wrong in the middle of an export."""


def _break_at_once(_: BundleWriter) -> None:
    raise BreakageError


def _break_in_a_blob(writer: BundleWriter) -> None:
    def write(blob: BlobWriter) -> None:
        blob.write(b"half")
        raise BreakageError

    writer.blob("rows.bin", write)


def _break_in_the_manifest(writer: BundleWriter) -> None:
    writer.blob("rows.bin", lambda blob: blob.write(b"whole"))

    def manifest_of(_: dict[str, Blob]) -> Manifest:
        raise BreakageError

    writer.finish(manifest_of)


@pytest.mark.parametrize("breaks", [_break_at_once, _break_in_a_blob, _break_in_the_manifest])
@pytest.mark.parametrize("replace", [False, True])
def test_an_export_that_breaks_leaves_nothing_new_behind(
    breaks: Callable[[BundleWriter], None], replace: bool, target: Path
) -> None:
    if replace:
        _write(target)
    before = _files(target) if replace else None
    with pytest.raises(BreakageError), BundleWriter(target, replace=replace) as writer:
        breaks(writer)
    assert list(target.parent.iterdir()) == ([target] if replace else [])
    assert before is None or _files(target) == before


def test_a_manifest_that_a_board_would_refuse_is_not_written(target: Path) -> None:
    tensor = Tensor("rows.bin", 0, "float32", (20, 3))
    with pytest.raises(ManifestError, match="expected a tensor inside the 5 bytes"), BundleWriter(target) as writer:
        writer.blob("rows.bin", lambda blob: blob.write(b"short"))
        writer.finish(lambda blobs: _manifest({"rows": tensor}, blobs))
    assert not any(target.parent.iterdir())


def test_what_a_killed_export_left_behind_is_cleared_by_the_next_one(target: Path) -> None:
    writer = BundleWriter(target)
    writer.partial.mkdir()
    (writer.partial / "rows.bin").write_bytes(b"half")
    _write(target)
    assert list(target.parent.iterdir()) == [target]
    assert set(_files(target)) == {"rows.bin", "norms.bin", MANIFEST_NAME}


def test_a_preview_can_be_opened_before_the_bundle_has_its_name(target: Path) -> None:
    tensors: dict[str, Tensor] = {}

    def rows(blob: BlobWriter) -> None:
        tensors["rows"] = blob.section([ROWS.data], dtype="float32", shape=ROWS.shape)

    with BundleWriter(target) as writer:
        writer.blob("rows.bin", rows)
        with Bundle.open(writer.preview(lambda blobs: _manifest(tensors, blobs, "0.1"))) as draft:
            draft.verify()
            assert draft.manifest.version == "0.1"
        assert not target.exists()
        writer.blob("more.bin", lambda blob: blob.write(b"more"))
        writer.finish(lambda blobs: _manifest(tensors, blobs, "1.0"))
    with Bundle.open(target) as bundle:
        assert bundle.manifest.version == "1.0" and set(bundle.manifest.blobs) == {"rows.bin", "more.bin"}


def test_an_existing_bundle_is_replaced_only_on_request_and_as_a_whole(target: Path) -> None:
    _write(target)
    (target / "stray").write_text("of the old bundle")
    with pytest.raises(BundleError, match="expected a new folder, found one; remove it or pass --force"):
        _write(target, version="2.0.0")
    with Bundle.open(target) as old:
        assert old.manifest.version == "1.0.0"
        _write(target, version="2.0.0", replace=True)
        old.verify()
    assert set(_files(target)) == {"rows.bin", "norms.bin", MANIFEST_NAME}
    assert b'"2.0.0"' in (target / MANIFEST_NAME).read_bytes()
    assert list(target.parent.iterdir()) == [target]


@contextmanager
def _untouched(folder: Path) -> Iterator[None]:
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def test_what_is_no_bundle_is_never_replaced(target: Path, tmp_path: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with _untouched(tmp_path), pytest.raises(BundleError, match="expected a bundle to replace, found something else"):
        _write(target, replace=True)
    (tmp_path / "file").write_text("also work")
    with _untouched(tmp_path), pytest.raises(BundleError, match="expected a bundle to replace, found something else"):
        _write(tmp_path / "file", replace=True)


@pytest.mark.parametrize("here", [".", "/", ".."])
def test_a_folder_without_a_name_is_a_target_like_any_other(here: str, target: Path) -> None:
    target.mkdir()
    with chdir(target):
        with pytest.raises(BundleError, match="expected a new folder, found one"):
            _write(Path(here))
        with pytest.raises(BundleError, match="expected a bundle to replace, found something else"):
            _write(Path(here), replace=True)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("behind", ["real", "nothing"])
def test_a_link_is_never_replaced_nor_what_is_behind_it(replace: bool, behind: str, tmp_path: Path) -> None:
    _write(tmp_path / "real")
    (tmp_path / "link").symlink_to(behind)
    with (
        _untouched(tmp_path),
        pytest.raises(BundleError, match="link: expected a new folder or a bundle, found a link"),
    ):
        _write(tmp_path / "link", replace=replace)


def test_a_target_that_appears_meanwhile_is_not_overwritten(target: Path) -> None:
    tensors: dict[str, Tensor] = {}

    def rows(blob: BlobWriter) -> None:
        tensors["rows"] = blob.section([ROWS.data], dtype="float32", shape=ROWS.shape)

    with pytest.raises(BundleError, match="expected a new folder, found one"), BundleWriter(target) as writer:
        writer.blob("rows.bin", rows)
        target.mkdir()
        (target / "mine").write_text("of somebody else")
        writer.finish(lambda blobs: _manifest(tensors, blobs))
    assert set(_files(target)) == {"mine"}
    assert list(target.parent.iterdir()) == [target]


def test_a_target_in_no_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere: expected a folder to write the bundle into, found none"):
        _write(tmp_path / "nowhere" / "bundle")
    assert not any(tmp_path.iterdir())


def test_everything_is_durable_before_the_bundle_has_its_name(target: Path) -> None:
    fs = RecordingFs()
    _write(target, fs=fs)
    renamed = fs.steps.index(("rename to", "bundle"))
    partial = f".bundle.partial-{os.getpid()}"
    for name in ("rows.bin", "norms.bin", MANIFEST_NAME):
        written = max(i for i, step in enumerate(fs.steps) if step == ("write", name))
        assert fs.steps[written + 1] == ("sync", name)
        assert fs.steps.index(("sync", name)) < fs.steps.index(("sync_folder", partial)) < renamed
    assert fs.steps[renamed + 1 :] == [("sync_folder", target.parent.name)]


def test_a_replaced_bundle_goes_only_when_the_new_one_has_its_name(target: Path) -> None:
    _write(target)
    fs = RecordingFs()
    _write(target, version="2.0.0", replace=True, fs=fs)
    named = fs.steps.index(("rename to", "bundle"))
    assert fs.steps[named - 1] == ("rename to", f".bundle.retired-{os.getpid()}")
    assert fs.steps[named - 2] == ("sync_folder", f".bundle.partial-{os.getpid()}")
    assert all(kind != "unlink" for kind, _ in fs.steps[:named])
    assert fs.steps[-1] == ("sync_folder", target.parent.name)
