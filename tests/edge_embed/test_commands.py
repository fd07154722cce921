"""The command line as a process: what it prints, where, and the status it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_embed.commands import BOARD_COMMANDS, Command
from edge_embed_bundle.store import Store
from tests.fakes.probes import YES, FakeProbe
from tests.making import WORDS, make_bundle, small_source, with_table

# A warning of ours on stderr would be a line that no user asked for.
COMMAND = (sys.executable, "-W", "error", "-m", "edge_embed")


def _run(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    words = [argument if isinstance(argument, bytes) else str(argument) for argument in arguments]
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **(env or {})},
        check=False,
        timeout=60,
    )


def _json(*arguments: object) -> dict[str, Any]:
    """Run a command with --json and return the one object that it prints."""
    done = _run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def store(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that serves ``bundle``; tests read it, never change it."""
    store = Store(tmp_path_factory.mktemp("commands") / "store")
    store.install(bundle, FakeProbe([YES]))
    return store.path


@pytest.mark.parametrize("command", [*BOARD_COMMANDS, "boards", "check", "export"])
def test_help_shows_an_example_to_copy(command: str) -> None:
    done = _run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: edge-embed {command} " in done.stdout
    assert f"example:\n  edge-embed {command} " in done.stdout
    assert "--json" in done.stdout


def test_a_command_is_offered_where_all_of_its_packages_are() -> None:
    for packages, offered in (((), True), (("numpy",), True), (("numpy", "no_such_package"), False)):
        command = Command("dance", "", "", lambda _: None, lambda _: 0, "dancing", packages)
        assert command.offered is offered


def test_the_overview_names_every_command_and_asking_for_nothing_is_wrong_usage() -> None:
    asked, nothing = _run("--help"), _run()
    assert asked.returncode == 0 and nothing.returncode == 2
    assert asked.stdout == nothing.stdout
    for command in (*BOARD_COMMANDS, "boards", "check", "export"):
        assert f"\n  {command} " in asked.stdout


def test_vectors_scores_and_descriptions_come_as_one_json_object(text_bundle: Path) -> None:
    vectors = _json("lookup", text_bundle, "word1", "東京")["answers"]
    assert [answer["input"] for answer in vectors] == ["word1", "東京"]
    assert all(len(answer["vector"]) == 16 for answer in vectors)
    found = _json("search", text_bundle, "--text", "word10 word11", "-k", 2)
    assert found["neighbours"][0]["key"] == "word10 word11"
    assert len(found["neighbours"]) == 2
    encoded = _json("encode", text_bundle, "word1", "word2 word3")
    assert [answer["input"] for answer in encoded["answers"]] == ["word1", "word2 word3"]
    described = _json("inspect", text_bundle)
    assert described["id"] == encoded["generation"] == found["generation"]
    assert described["manifest"]["space"]["id"] == encoded["space"] == found["space"]
    verified = _json("verify", text_bundle)
    assert verified["passed"] and all(check["passed"] for check in verified["checks"])


def test_a_bundle_is_exported_checked_installed_and_rolled_back(tmp_path: Path, newer_bundle: Path) -> None:
    source = tmp_path / "vectors.txt"
    source.write_text("3 2\nking 1 2\nqueen 2 1\nnew york 3 3\n")
    first, store = tmp_path / "words-1.0.0", tmp_path / "store"
    exported = _json(
        "export", source, "-o", first, "--name", "words", "--board", "pi-4", "--budget", "lookup=9000/9999"
    )
    assert (exported["name"], exported["version"], exported["path"]) == ("words", "1.0.0", str(first))
    assert exported["quality"]["table"]["bytes_before"] == 3 * 2 * 4
    checked = _json("check", first)
    assert checked["within"] and checked["board"] == "this-machine"
    assert {line["name"]: line["budget"] for line in checked["lines"]}["lookup p99"] == 9999
    installed = _json("install", first, "--store", store)
    assert installed["installed"] and installed["name"] == "words"
    assert {outcome["passed"] for outcome in installed["probe"]["golden"]} == {True}
    newer = _json("install", newer_bundle, "--store", store)
    assert [found["role"] for found in _json("status", store)["generations"]] == ["active", "previous"]
    back = _json("rollback", store)
    assert (back["active"], back["previous"], back["name"]) == (installed["id"], newer["id"], "words")
    assert _json("lookup", store, "new york")["answers"][0]["vector"] == pytest.approx([3, 3])


def test_boards_are_listed_and_shown() -> None:
    names = [board["name"] for board in _json("boards", "list")["boards"]]
    assert "pi-zero-2w" in names
    assert _json("boards", "show", "pi-zero-2w")["ram_bytes"] == 512 * 2**20


WRONG_USAGE = {
    "lookup without a key": ["lookup", "{bundle}"],
    "search for two things": ["search", "{bundle}", "--key", "word1", "--text", "word1"],
    "search for no number": ["search", "{bundle}", "--key", "word1", "-k", "many"],
    "boards without an action": ["boards"],
    "export to nowhere": ["export", "{bundle}"],
}


@pytest.mark.parametrize("usage", WRONG_USAGE)
def test_wrong_usage_is_status_2_and_one_sentence_that_names_the_help(bundle: Path, usage: str) -> None:
    done = _run(*(word.format(bundle=bundle) for word in WRONG_USAGE[usage]))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edge-embed: ")
    assert len(done.stderr.splitlines()) == 1
    assert f"edge-embed {WRONG_USAGE[usage][0]} --help shows the arguments" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no /dev/full to write to")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_under_stdout_is_a_sentence_and_not_a_success(bundle: Path, flags: list[str]) -> None:
    command = [sys.executable, "-m", "edge_embed", "lookup", str(bundle), "word1", *flags]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("edge-embed: the system said: ")
    assert len(done.stderr.splitlines()) == 1


def test_what_the_system_refuses_is_an_object_for_who_asked_for_json(bundle: Path) -> None:
    # Nobody makes a file in /proc, root included.
    done = _run("delta", "make", str(bundle), str(bundle), "-o", "/proc/delta", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"].startswith("the system said: ")
    assert done.stderr == f"edge-embed: {json.loads(done.stdout)['error']}\n"


def test_what_the_system_refuses_is_a_sentence_where_stdout_is_closed(bundle: Path) -> None:
    command = [*COMMAND, "delta", "make", str(bundle), str(bundle), "-o", "/proc/delta", "--json"]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("edge-embed: the system said: ")
    assert len(done.stderr.splitlines()) == 1


#: The words of a command, the status it ends with, and what its one line of error has to say.
REFUSED: Mapping[str, tuple[list[str], int, tuple[str, ...]]] = {
    "an unknown key": (["lookup", "{bundle}", "word1", "nowhere"], 1, ("expected keys", "found 1", "'nowhere'")),
    "an unknown key, as JSON": (["lookup", "{store}", "nowhere", "--json"], 1, ("'nowhere'",)),
    "a memory budget that cannot hold": (
        ["lookup", "{bundle}", "word1", "--memory-budget", "1MiB"],
        1,
        ("expected at most 1.0 MiB", "found"),
    ),
    "a missing folder": (["lookup", "{tmp}/nowhere", "word1"], 2, ("nowhere: expected a bundle folder, found",)),
    "a file for a folder": (["inspect", "{tmp}/file"], 2, ("file: expected a bundle folder, found",)),
    "a folder without a bundle": (["check", "{tmp}"], 2, ("manifest.json: expected a plain file, found",)),
    "a store that is none": (["status", "{tmp}"], 2, ("expected a store, found none",)),
    "nothing to roll back to": (["rollback", "{store}"], 2, ("expected", "found none")),
    "an unknown command": (["dance"], 2, ("expected a command of bag, boards,", "found 'dance'")),
    "an unknown board": (["check", "{bundle}", "--board", "pi-99"], 2, ("expected a board of", "found 'pi-99'")),
    "an unknown engine": (["lookup", "{bundle}", "word1", "--engine", "abacus"], 2, ("kernels", "found 'abacus'")),
    "no neighbours": (["search", "{bundle}", "--key", "word1", "-k", "0"], 2, ("k of at least 1, found 0",)),
    "a source that is not there": (["export", "{tmp}/nowhere", "-o", "{tmp}/out"], 2, ("expected a model", "found")),
    "a source that is none": (["export", "{tmp}/file", "-o", "{tmp}/out"], 2, ("expected a model", "found")),
    "a source without an end": (
        ["export", "/dev/zero", "-o", "{tmp}/out"],
        2,
        ("/dev/zero: expected a model's", "found"),
    ),
    "a collection without an end": (
        ["export", "{words}", "-o", "{tmp}/out", "--collection", "/dev/zero"],
        2,
        ("/dev/zero: expected a file of text, found",),
    ),
    "a target that is taken": (["export", "{words}", "-o", "{bundle}"], 2, ("expected a new folder, found one",)),
    "a budget that is no number": (
        ["export", "{words}", "-o", "{tmp}/out", "--budget", "lookup=nan/1"],
        2,
        ("expected a budget like lookup=200/2000", "found 'lookup=nan/1'"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_on_stderr_and_a_status(tmp_path: Path, bundle: Path, store: Path, case: str) -> None:
    words, status, said = REFUSED[case]
    (tmp_path / "file").write_bytes(b"no model")
    (tmp_path / "words.txt").write_bytes(b"1 2\nking 1 2\n")
    places = {"bundle": bundle, "store": store, "tmp": tmp_path, "words": tmp_path / "words.txt"}
    done = _run(*(word.format(**places) for word in words))
    assert done.returncode == status
    if "--json" in words:
        assert done.stderr == f"edge-embed: {json.loads(done.stdout)['error']}\n"
    else:
        assert done.stdout == ""
    assert done.stderr.startswith("edge-embed: ") and done.stderr.count("\n") == 1
    for part in said:
        assert part in done.stderr


def test_verify_of_a_damaged_bundle_says_no_and_where(damageable: Path) -> None:
    data = bytearray((damageable / "table.bin").read_bytes())
    data[7] ^= 1
    (damageable / "table.bin").write_bytes(data)
    done = _run("verify", damageable, "--json")
    assert done.returncode == 1 and done.stderr == ""
    found = json.loads(done.stdout)
    assert not found["passed"]
    assert "table.bin: expected sha256" in found["checks"][-1]["check"]


def test_verify_says_which_graph_answers_unlike_the_kernels(damageable: Path) -> None:
    # The graph takes its rows from the start of the file, and the manifest has the digest of that graph.
    graph = (damageable / "table.onnx").read_bytes().replace(b"65536", b"00000", 1)
    (damageable / "table.onnx").write_bytes(graph)
    manifest = json.loads((damageable / "manifest.json").read_text())
    manifest["blobs"]["table.onnx"]["sha256"] = hashlib.sha256(graph).hexdigest()
    (damageable / "manifest.json").write_text(json.dumps(manifest))
    done = _run("verify", damageable)
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    failed = [line for line in lines if not line.startswith("ok ")]
    assert len(lines) == 6 and len(failed) == 1
    assert failed[0].startswith("FAILED   table.onnx on onnxruntime ")
    assert failed[0].endswith("other vectors than the kernels")


def test_a_budget_that_is_missed_is_status_1_with_the_figures(tmp_path: Path) -> None:
    source = tmp_path / "vectors.txt"
    source.write_text("1 2\nking 1 2\n")
    exported = _run("export", source, "-o", tmp_path / "words", "--graphs", "none")
    assert exported.returncode == 0, exported.stderr
    # What no board can keep is refused by an export; another exporter may know of none.
    manifest = tmp_path / "words" / "manifest.json"
    said = json.loads(manifest.read_bytes())
    said["budgets"]["operations"]["lookup"] = {"p50_us": 0.001, "p99_us": 0.001}
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(said))
    done = _run("check", tmp_path / "words")
    assert (done.returncode, done.stderr) == (1, "")
    lines = {line[:12].strip(): line for line in done.stdout.splitlines()}
    assert lines["lookup p50"].endswith("OVER") and lines["lookup p99"].endswith("OVER")
    assert lines["private memo"].endswith("within")


def test_a_reader_that_has_seen_enough_is_no_error(bundle: Path) -> None:
    # Two hundred kilobytes, more than a pipe holds: the second half is written after the reader has gone.
    with subprocess.Popen(
        [*COMMAND, "lookup", str(bundle), *WORDS * 20], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"word0 ")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_keys_of_any_bytes_are_taken_and_shown(tmp_path: Path) -> None:
    source = with_table(small_source(keys=("odd", "東京")), keys=(b"odd \xff", "東京".encode()))
    odd = make_bundle(tmp_path / "odd", source=source, graphs=()).path
    shown = _run("lookup", odd, b"odd \xff", "東京", env={"PYTHONIOENCODING": "ascii"})
    assert (shown.returncode, shown.stderr) == (0, "")
    first, second = shown.stdout.splitlines()
    assert first.startswith(r"odd \udcff ") and second.startswith(r"\u6771\u4eac ")
    found = _json("lookup", odd, b"odd \xff")["answers"][0]
    assert found["input"] == "odd \\udcff" and len(found["vector"]) == 16
    assert _json("search", odd, "--key", "東京")["neighbours"][0]["key"] == "odd \\udcff"
    unknown = _run("lookup", odd, b"\xfe")
    assert unknown.returncode == 1 and unknown.stderr.endswith(r"does not have: '\udcfe'" + "\n")
