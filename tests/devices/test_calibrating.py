"""``boards calibrate`` measures what it says, writes a profile that the gate reads, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path

import pytest

from edge_embed.commands import main
from edge_embed.named_files import check_writable
from edge_embed_bundle.bundle import Bundle
from edge_embed_devices import calibrating, engine_speeds
from edge_embed_devices.calibrating import Extent, calibrate, isa_of
from edge_embed_devices.graph_work import Work, counted
from edge_embed_devices.profiles import FIGURES, board_named, cpuinfo
from tests.devices import layers

SMALL = Extent(memory_bytes=4 * 2**20, file_bytes=4 * 2**20, steps=2000, seconds=0.1, quiet_seconds=0.0)


def test_a_profile_says_when_and_how_each_figure_was_measured_and_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    board = calibrate(path, tmp_path, SMALL)
    assert board == board_named(str(path))
    assert board.date is not None
    assert abs((date.fromisoformat(board.date) - datetime.now(UTC).date()).days) <= 1
    for key, figure in FIGURES.items():
        assert (getattr(board, figure.attribute) is None) == (key not in board.sources), key
    assert board.memory_read_bytes_per_s is not None
    assert board.memory_read_bytes_per_s > 50e6
    assert board.scan_bytes_per_s is not None
    assert board.scan_bytes_per_s > 1e6
    assert board.python_call_ns is not None
    assert 5 < board.python_call_ns < 100_000
    # The file that was read from flash is gone.
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("tflite", "ai_edge_litert")])
def test_engines_that_are_here_have_figures_that_say_who_ran(tmp_path: Path, format: str, package: str) -> None:
    pytest.importorskip(package)
    found = engine_speeds.measured(tmp_path, 0.0)
    assert not list(tmp_path.iterdir())
    for variant in ("float32", "int8"):
        products, how = found[f"{format}_{variant}_products_g_per_s"]
        assert 0.01 < products < 20_000
        assert "by onnxruntime" in how or "by litert" in how
        assert found[f"{format}_{variant}_weights_g_per_s"][0] > 0


def test_a_text_that_was_disturbed_does_not_make_tokens_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(engine_speeds, "_seconds", lambda *_: [0.5, 0.064])
    found = engine_speeds.measured(tmp_path, 0.0)
    # A token takes half a millisecond.
    assert found["onnx_int8_products_g_per_s"][0] == pytest.approx(engine_speeds.WEIGHTS / 0.0005 / 1e9)
    assert found["onnx_int8_weights_g_per_s"][0] > 0


@contextlib.contextmanager
def _disk_of(size: str, place: Path) -> Iterator[None]:
    """A file system that is full soon."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False)  # noqa: S607
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)  # noqa: S607


def test_engines_whose_weights_find_no_room_have_no_figures(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with _disk_of("20m", tmp_path):
        found = engine_speeds.measured(tmp_path, 0.0)
        assert not list(tmp_path.iterdir())
    assert "onnx_int8_products_g_per_s" in found
    assert "onnx_float32_products_g_per_s" not in found


def test_engines_have_no_figures_where_not_even_a_folder_finds_room(tmp_path: Path) -> None:
    # The root of the disk has the one inode that there is.
    with _disk_of("20m,nr_inodes=1", tmp_path):
        assert engine_speeds.measured(tmp_path, 0.0) == {}


def test_an_engine_that_ends_its_process_has_no_figures_and_others_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    package, folder = tmp_path / "packages" / "ai_edge_litert", tmp_path / "folder"
    package.mkdir(parents=True)
    folder.mkdir()
    (package / "__init__.py").touch()
    # What it says before is no text.
    (package / "interpreter.py").write_text("import os\nos.write(1, b'\\xff\\n')\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    assert set(engine_speeds.measured(folder, 0.0)) == {
        f"onnx_{variant}_{what}_g_per_s" for variant in ("float32", "int8") for what in ("products", "weights")
    }
    assert not list(folder.iterdir())


@pytest.mark.parametrize("size", ["1028k", "2044k", "2048k"])
def test_flash_without_room_has_no_figures_wherever_the_room_ends(tmp_path: Path, size: str) -> None:
    with _disk_of(size, tmp_path):
        assert calibrating._flash(tmp_path, SMALL) == {}
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", ["float32", "int8"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_the_layers_that_are_run_are_those_that_export_draws(format: str, variant: str) -> None:
    for package in ("onnx", "ai_edge_litert"):
        pytest.importorskip(package)
    name = f"{variant}.{format}"
    kept = resources.files("edge_embed_devices").joinpath("layers", name).read_bytes()
    drawn = layers.drawn()[name]
    works = []
    for data in (kept, drawn):
        work = counted(memoryview(data), format)
        works.append((work, _operators(data, format)))
    assert works[0] == works[1]
    assert works[0][0] == Work(engine_speeds.WEIGHTS, engine_speeds.WEIGHTS, variant == "int8")


def _operators(data: bytes, format: str) -> list[object]:
    """Return the kinds of a graph's steps, in their order."""
    if format == "onnx":
        import onnx

        return [node.op_type for node in onnx.load_from_string(data).graph.node]
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    return [model.operatorCodes[step.opcodeIndex].builtinCode for step in model.subgraphs[0].operators]


def test_a_chase_goes_through_every_line_before_it_comes_home() -> None:
    words = calibrating._chain(2**16, 10_000)
    seen, place = set(), 0
    for _ in range(2**10):
        assert place % 16 == 0
        seen.add(place)
        place = words[place]
    assert (place, len(seen)) == (0, 2**10)


def test_the_instruction_sets_are_those_that_linux_names() -> None:
    a76 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes fphp asimdhp asimddp\n"
    assert isa_of(a76) == ("neon", "dotprod", "fp16")
    assert isa_of("Features\t: half thumb neon vfpv4\n") == ("neon",)
    assert isa_of("flags\t: sse2 avx2\n") == ()
    # Some containers keep it to themselves.
    assert isa_of(cpuinfo(Path("/nowhere/cpuinfo"))) == ()


def test_the_clock_is_the_fastest_cores_where_the_system_tells_of_it(tmp_path: Path) -> None:
    for core, khz in (("cpu0", 1_800_000), ("cpu4", 2_400_000)):
        (tmp_path / core / "cpufreq").mkdir(parents=True)
        (tmp_path / core / "cpufreq" / "cpuinfo_max_freq").write_text(f"{khz}\n")
    assert calibrating._clock(tmp_path)["core_mhz"][0] == 2400
    assert calibrating._clock(tmp_path / "none") == {}


def test_what_a_calibration_did_not_find_is_not_promised_by_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate(tmp_path / "mine.toml", tmp_path, replace(SMALL, engines=False))
    for board, promised in (("pi-zero-2w", True), (str(tmp_path / "mine.toml"), False)):
        assert main(["boards", "show", board]) == 0
        said = capsys.readouterr().out
        assert "not known" in said
        assert ("boards calibrate measures it" in said) is promised


def test_a_folder_that_is_memory_has_no_figures_of_flash(tmp_path: Path) -> None:
    shared = Path("/dev/shm")  # noqa: S108
    if not shared.is_dir() or not re.search(r"^\S+ /dev/shm tmpfs ", Path("/proc/mounts").read_text(), re.MULTILINE):
        pytest.skip("no file system in memory here")
    board = calibrate(tmp_path / "mine.toml", shared, SMALL)
    assert board.flash_random_reads_per_s is None
    assert board.flash_read_bytes_per_s is None
    assert board.page_fault_us is not None


@pytest.mark.parametrize("name", ["mine.txt", "nowhere/mine.toml", "-.toml"])
def test_a_target_that_is_no_profile_in_a_folder_is_refused_before_anything_is_measured(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boards", "calibrate", f"--output={tmp_path / name}", "--json"]) == 2
    assert "expected a file like my-board.toml" in json.loads(capsys.readouterr().out)["error"]


def test_a_folder_that_keeps_files_out_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody makes a file in /proc, root included.
    assert main(["boards", "calibrate", f"--output={tmp_path / 'mine.toml'}", "--folder=/proc", "--json"]) == 2
    assert "/proc: expected a folder that takes files, found: " in json.loads(capsys.readouterr().out)["error"]
    assert not list(tmp_path.iterdir())


def test_a_profile_that_a_user_keeps_of_this_machine_is_predicted_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = resources.files("edge_embed_devices").joinpath("boards", "pi-4.toml").read_text(encoding="utf-8")
    (tmp_path / "this-machine.toml").write_text(kept, encoding="utf-8")
    monkeypatch.setenv("EDGE_EMBED_BOARDS", str(tmp_path))
    monkeypatch.setattr(calibrating, "this_machine_for", lambda manifest: pytest.fail("measured"))
    with Bundle.open(Path(__file__).parents[1] / "golden" / "format-1" / "int8-lists") as bundle:
        board = calibrating.board_to_predict("this-machine", bundle.manifest)
    assert board == board_named("this-machine")


def test_a_target_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    # Nobody makes a file in /proc, root included.
    for target in (tmp_path / "folder.toml", tmp_path / "pipe.toml", Path("/proc/mine.toml")):
        assert main(["boards", "calibrate", f"--output={target}"]) == 2
        assert f"{target}: expected a file in a folder that is there, found" in capsys.readouterr().err


def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.write_bytes(b"kept")
    for place in (there, absent):
        check_writable(place, regular=True)
    assert there.read_bytes() == b"kept"
    assert not absent.exists()
