"""A bundle on disk is opened whole, checked and mapped through the same descriptors, and never changed."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import pytest

from edge_embed_bundle.bundle import CHUNK_BYTES, Bundle, chunks_of
from edge_embed_bundle.errors import BundleError, DigestError, MissingBlobError, TruncatedError
from edge_embed_bundle.manifest import MANIFEST_NAME, Manifest
from edge_embed_bundle.values import Blob


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _with_blob(folder: Path, name: str, data: bytes) -> None:
    """Add a blob to a bundle, as a later exporter might."""
    path = folder / MANIFEST_NAME
    manifest = Manifest.parse(path.read_bytes(), source=str(path))
    (folder / name).write_bytes(data)
    blob = Blob(len(data), hashlib.sha256(data).hexdigest())
    path.write_bytes(manifest._replace(blobs={**manifest.blobs, name: blob}).to_bytes())


def test_the_identity_of_a_bundle_is_the_digest_of_its_manifest(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        data = (bundle / MANIFEST_NAME).read_bytes()
        assert opened.id == hashlib.sha256(data).hexdigest()
        assert opened.manifest_bytes == data
        assert opened.path == bundle


def test_every_blob_is_mapped_as_it_is_on_disk_and_cannot_be_written(bundle: Path) -> None:
    with Bundle.open(str(bundle)) as opened:
        for name in opened.manifest.blobs:
            view = opened.map(name)
            assert view == (bundle / name).read_bytes()
            assert view.readonly and view.obj is opened.map(name).obj


def test_a_tensor_is_its_part_of_the_map(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        tensor = opened.manifest.tables[0].tensors["key_bytes"]
        data = (bundle / tensor.blob).read_bytes()
        assert opened.tensor(tensor) == data[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes]
        assert bytes(opened.tensor(tensor)).startswith(b"word0word1word2")


def test_an_empty_blob_is_empty_and_not_an_error(damageable: Path) -> None:
    _with_blob(damageable, "nothing.bin", b"")
    with Bundle.open(damageable) as opened:
        opened.verify()
        assert bytes(opened.map("nothing.bin")) == b""


def test_verifying_tells_its_progress_in_bytes(damageable: Path) -> None:
    _with_blob(damageable, "large.bin", bytes(3 * CHUNK_BYTES + 7))
    told: list[int] = []
    with Bundle.open(damageable) as opened:
        opened.verify(told.append)
        assert sum(told) == opened.manifest.size_bytes
        assert max(told) == CHUNK_BYTES


def test_a_file_is_read_in_chunks_from_its_start_whoever_read_before(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 1)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        file.seek(100)
        for _ in range(2):
            assert b"".join(bytes(chunk) for chunk in chunks_of(file.fileno())) == data
        assert file.tell() == 100


def test_what_was_verified_is_what_is_mapped_though_the_file_has_another_name_by_then(damageable: Path) -> None:
    good = (damageable / "table.bin").read_bytes()
    with Bundle.open(damageable) as opened:
        (damageable / "other").write_bytes(bytes(len(good)))
        (damageable / "other").rename(damageable / "table.bin")
        opened.verify()
        assert opened.map("table.bin") == good
    with Bundle.open(damageable) as again, pytest.raises(DigestError, match=r"table\.bin: expected sha256"):
        again.verify()


def test_files_that_the_manifest_does_not_name_are_nobodys_business(damageable: Path) -> None:
    (damageable / "README").write_text("from the exporter, with love")
    (damageable / "folder").mkdir()
    with Bundle.open(damageable) as opened:
        opened.verify()
        assert "README" not in opened.manifest.blobs


def test_a_closed_bundle_holds_no_file_and_leaves_the_views_that_are_in_use(bundle: Path) -> None:
    before = _open_files()
    opened = Bundle.open(bundle)
    assert _open_files() == before + len(opened.manifest.blobs)
    view = opened.map("table.bin")
    opened.close()
    opened.close()
    assert view == (bundle / "table.bin").read_bytes()
    del view
    gc.collect()
    assert _open_files() == before


def test_a_bundle_that_nobody_holds_closes_itself(bundle: Path) -> None:
    before = _open_files()
    opened = Bundle.open(bundle)
    opened.map("table.bin")
    del opened
    gc.collect()
    assert _open_files() == before


def test_a_refused_bundle_holds_no_file(damageable: Path) -> None:
    before = _open_files()
    os.truncate(damageable / "table.tflite", 5)
    with pytest.raises(TruncatedError, match=r"table\.tflite: expected [0-9]+ bytes, found 5"):
        Bundle.open(damageable)
    (damageable / "table.tflite").unlink()
    with pytest.raises(MissingBlobError, match=r"table\.tflite: expected a plain file, found: No such file"):
        Bundle.open(damageable)
    assert _open_files() == before


def test_a_place_that_is_no_bundle_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for name, found in (("file", "Not a directory"), ("nowhere", "No such file")):
        with pytest.raises(BundleError, match=f"{name}: expected a bundle folder, found: {found}"):
            Bundle.open(tmp_path / name)
    with pytest.raises(BundleError, match=r"manifest\.json: expected a plain file"):
        Bundle.open(tmp_path)
