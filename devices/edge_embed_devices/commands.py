"""``boards`` and ``check``: what is known of boards, and whether a bundle keeps its promises."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from edge_embed.commands import Command
from edge_embed.errors import RequestError
from edge_embed.memory import format_size
from edge_embed.named_files import check_writable
from edge_embed_bundle.values import NAME
from edge_embed_devices.calibrating import Extent, calibrate, check_folder
from edge_embed_devices.checking import Check, Line, check, name_of
from edge_embed_devices.comparing import (
    GONE,
    THRESHOLD,
    circumstances,
    earlier,
    missing,
    regressions,
    write_junit,
)
from edge_embed_devices.profiles import FIGURES, THIS_MACHINE, Board, board_named, board_names, is_here


def _configure_boards(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|calibrate")
    summaries = {
        "list": "all boards, a line each",
        "show": "one board, with its sources",
        "calibrate": "measure this machine, in less than two minutes, and write its profile",
    }
    for name, summary in summaries.items():
        action = actions.add_parser(name, help=summary)
        # Accepted after the action, too; SUPPRESS keeps this default from undoing the one before it.
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        if name == "show":
            action.add_argument("name", metavar="NAME", help="of a known board, or a profile's path")
        if name == "calibrate":
            target = Path(f"{THIS_MACHINE}.toml")
            action.add_argument("-o", "--output", type=Path, default=target, metavar="FILE", help=f"default: {target}")
            action.add_argument(
                "--folder", type=Path, metavar="DIR", help="on the flash that is measured; default: where FILE is"
            )


def _boards(arguments: argparse.Namespace) -> int:
    if arguments.action in ("show", "calibrate"):
        board = board_named(arguments.name) if arguments.action == "show" else _calibrated(arguments)
        if arguments.json:
            print(json.dumps(asdict(board)))
        else:
            _show(board)
        return 0
    boards, problems = [], []
    for name in board_names():
        try:
            boards += [] if name == THIS_MACHINE else [board_named(name)]
        except RequestError as error:
            problems.append(str(error))
    if arguments.json:
        print(json.dumps({"boards": [asdict(board) for board in boards], "problems": problems}))
    else:
        for board in boards:
            print(f"{board.name:17} {board.title}, {format_size(board.ram_bytes)}")
        print(f"{THIS_MACHINE:17} measured when it is asked for")
        for problem in problems:
            print(f"edge-embed: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _calibrated(arguments: argparse.Namespace) -> Board:
    target: Path = arguments.output
    folder = target.parent if arguments.folder is None else arguments.folder
    if target.suffix != ".toml" or not NAME.fullmatch(target.stem) or not folder.is_dir():
        raise RequestError(f"expected a file like my-board.toml in a folder that exists, found {target} and {folder}")
    check_writable(target, regular=True)
    check_folder(folder)
    return calibrate(target, folder, Extent.of_this_machine())


def _show(board: Board) -> None:
    print(f"{board.name}: {board.title}")
    print(f"  {board.architecture}, {board.cores} cores, {' '.join(board.isa) or 'ISA not asked'}")
    print(f"  {board.os or 'OS not known'}, Python {board.python or 'not known'}")
    # What a calibration did not find another one will not find.
    unknown = "not known; boards calibrate measures it" if board.date is None else "not known"
    for key, figure in FIGURES.items():
        value = getattr(board, figure.attribute)
        shown = unknown if value is None else f"{value / figure.unit:.5g}"
        print(f"  {key:32}{shown:>12}  {board.sources.get(key, '')}".rstrip())


def _configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="STORE|BUNDLE", type=Path)
    parser.add_argument(
        "--board",
        metavar="NAME",
        default=THIS_MACHINE,
        help=f"judge for this board, by prediction; default: {THIS_MACHINE}, by measurement",
    )
    parser.add_argument("--against", type=Path, metavar="FILE", help="what an earlier check --json printed")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="RATIO",
        help=f"how many times the earlier figure is a regression (exit status 1); default: {THRESHOLD}",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the verdicts as CI servers read them")


def _check(arguments: argparse.Namespace) -> int:
    board = board_named(arguments.board)
    if not 1 <= arguments.threshold < float("inf"):
        raise RequestError(f"expected a threshold of 1 or more, found {arguments.threshold}")
    if arguments.junit is not None:
        check_writable(arguments.junit)
    now = circumstances(board.name, name_of(arguments.path))
    before = {} if arguments.against is None else earlier(arguments.against, now)
    found = check(arguments.path, board)
    lines = found.lines
    within = all(line.within for line in lines)
    worse, gone = regressions(lines, before, arguments.threshold), missing(lines, before)
    # Figures took their time: they are printed even where the report cannot be written.
    problem = ""
    if arguments.junit is not None:
        try:
            write_junit(arguments.junit, board.name, lines, worse, gone)
        except OSError as error:
            problem = f"the system said: {error}"
    if arguments.json:
        shown = [{**asdict(line), "within": line.within} for line in lines]
        grown = [{**asdict(regression), "ratio": regression.ratio} for regression in worse]
        rough = {"guessed": found.guessed, "rougher": found.rougher}
        known = {**now, "predicted": not is_here(board), **rough, "within": within}
        failed = {"error": problem} if problem else {}
        print(json.dumps({**known, "lines": shown, "regressions": grown, "missing": gone, **failed}))
    else:
        print_lines(found, board)
        for name in gone:
            print(f"not compared: {name}: {GONE}")
        for regression in worse:
            print(f"REGRESSION {regression}")
    if problem:
        print(f"edge-embed: {problem}", file=sys.stderr)
        return 2
    return 0 if within and not worse else 1


def print_lines(found: Check, board: Board) -> None:
    """Print budgets beside measurements as a table."""
    predicted = not is_here(board)
    head = f"{'':36}{'budget':>12}{'here':>12}"
    print(head + (f"{board.name:>18}" if predicted else ""))
    for line in found.lines:
        cells = f"{line.name:36}{_shown(line, line.budget):>12}{_shown(line, line.measured):>12}"
        if predicted:
            cells += f"{_shown(line, line.on_board):>18}"
        print(f"{cells}  {_verdict(line)}".rstrip())
    for reason in dict.fromkeys(line.skipped for line in found.lines if line.skipped):
        print(f"not measured: {reason}")
    if predicted:
        print(
            f"latency on {board.name} is predicted: measured here, times what its profile predicts over what this "
            "machine's does; check on the board itself measures it"
        )
    if found.guessed:
        lacks = ", ".join(found.guessed)
        print(f"rougher, for {board.name}'s profile has no {lacks}; boards calibrate on the board finds it")
    for operation in found.rougher:
        print(f"rough: {operation}, whose graph is none of a transformer")


def _verdict(line: Line) -> str:
    if line.budget is None:
        return ""
    return "skipped" if line.skipped else "within" if line.within else "OVER"


def _shown(line: Line, value: float | None) -> str:
    if value is None:
        return "-"
    if line.unit in ("answers", "faults"):
        return f"{value:.0f}"
    if line.unit == "bytes":
        return format_size(value)
    return f"{value / 1000:.1f} ms" if value >= 10_000 else f"{value:.0f} us"


BOARDS = Command("boards", "known boards", "edge-embed boards show pi-zero-2w", _configure_boards, _boards)
CHECK = Command(
    "check",
    "memory and latency against the budgets",
    "edge-embed check /var/lib/notes --board pi-zero-2w",
    _configure_check,
    _check,
)
