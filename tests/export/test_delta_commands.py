"""``edge-embed delta``: make, apply, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_embed.commands import main
from edge_embed_bundle.store import Store
from tests import deltas
from tests.fakes.probes import FakeProbe


def _delta(*words: object) -> int:
    return main(["delta", *map(str, words)])


def test_a_delta_is_made_and_applied(
    bundle: Path, newer_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _delta("make", bundle, newer_bundle, "-o", tmp_path / "delta", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size_bytes"] == (tmp_path / "delta").stat().st_size == 76 + sum(said["parts"].values())
    assert _delta("apply", bundle, tmp_path / "delta", "-o", tmp_path / "again", "--json") == 0
    assert json.loads(capsys.readouterr().out)["version"] == "1.1.0"
    assert deltas.files(tmp_path / "again") == deltas.files(newer_bundle)


def test_a_store_is_what_serves_in_it(
    bundle: Path, newer_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(tmp_path / "store").install(bundle, FakeProbe())
    assert _delta("make", tmp_path / "store", newer_bundle, "-o", tmp_path / "delta") == 0
    assert "small 1.0.0 -> 1.1.0" in capsys.readouterr().out
    assert _delta("apply", tmp_path / "store", tmp_path / "delta", "-o", tmp_path / "again") == 0
    assert _delta("apply", tmp_path / "store", tmp_path / "delta", "-o", tmp_path / "again") == 2
    assert "expected a new folder, found one" in capsys.readouterr().err
    assert _delta("apply", tmp_path / "store", tmp_path / "delta", "-o", tmp_path / "again", "--force") == 0


def test_no_delta_is_made_of_a_damaged_bundle(
    damageable: Path, newer_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((damageable / "table.tflite").read_bytes())
    data[-1] ^= 1
    (damageable / "table.tflite").write_bytes(data)
    assert _delta("make", damageable, newer_bundle, "-o", tmp_path / "delta") == 2
    assert "table.tflite: expected sha256" in capsys.readouterr().err
    assert not list(tmp_path.glob("*delta"))


def test_what_is_no_delta_is_said(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _delta("apply", bundle, tmp_path / "absent", "-o", tmp_path / "again") == 2
    assert "absent: expected a delta, found: No such file" in capsys.readouterr().err
    assert _delta("apply", bundle, bundle / "manifest.json", "-o", tmp_path / "again") == 2
    assert "expected a delta that begins with b'EEDELTA1'" in capsys.readouterr().err
    assert _delta() == 2
