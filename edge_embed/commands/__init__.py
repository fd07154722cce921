"""The command ``edge-embed``: finds the subcommand, runs it, turns errors into one sentence and an exit status.

* Exit status 0: done; 1: the answer is no (a budget missed, a check failed, a key unknown); 2: wrong usage or input.
* ``--json`` prints one object on stdout and nothing else there; an error is one, too, beside its sentence on stderr.
* The commands a board needs are known by name, so a lookup imports its own module and nothing more. All others
  register in the entry-point group ``edge_embed.commands``; they are searched only when asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn

from edge_embed.version import __version__
from edge_embed_bundle.errors import EdgeEmbedError

GROUP = "edge_embed.commands"

BOARD_COMMANDS = {
    "inspect": "edge_embed.commands.bundles:INSPECT",
    "verify": "edge_embed.commands.bundles:VERIFY",
    "lookup": "edge_embed.commands.answers:LOOKUP",
    "bag": "edge_embed.commands.answers:BAG",
    "encode": "edge_embed.commands.answers:ENCODE",
    "search": "edge_embed.commands.answers:SEARCH",
    "classify": "edge_embed.commands.answers:CLASSIFY",
    "install": "edge_embed.commands.stores:INSTALL",
    "status": "edge_embed.commands.stores:STATUS",
    "rollback": "edge_embed.commands.stores:ROLLBACK",
    "scrub": "edge_embed.commands.stores:SCRUB",
    "update": "edge_embed.commands.updates:UPDATE",
}


class Command(NamedTuple):
    """A subcommand: what it is for, an example to copy, its arguments and its work.

    A command that names an ``extra`` and its ``packages`` is offered only where those are installed.
    """

    name: str
    summary: str
    example: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    extra: str = ""
    packages: tuple[str, ...] = ()

    @property
    def offered(self) -> bool:
        """Whether this machine has what the command needs; one that has not can ask all the same, and is told."""
        from importlib.util import find_spec

        return all(find_spec(package) is not None for package in self.packages)


def printable(text: str) -> str:
    """Return a stranger's text as a terminal may show it: without control characters that would steer it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def spelled(text: str) -> str:
    """Return a key as JSON may hold it: bytes that are no UTF-8 spelled out, not as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


class UsageError(EdgeEmbedError):
    """The command line asks for something that is not there."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as every error of this command; ``--help`` has the rest."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help shows the arguments and an example")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Keys may hold bytes that are no UTF-8; they are shown, not a reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stopped_cleanly():
            status = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except EdgeEmbedError as error:
        return _said(str(error), error.exit_status, words)
    except BrokenPipeError:
        # The reader (``| head``) has seen enough.
        _abandon_stdout()
        return 0
    except OSError as error:
        status = _said(f"the system said: {error}", 2, words)
        _abandon_stdout()
        return status
    except MemoryError:
        return _said("expected memory for this work, found none left; nothing was changed", 2, words)
    except KeyboardInterrupt:
        print("edge-embed: interrupted", file=sys.stderr)
        return 130
    return status


@contextlib.contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """Let a stop by the system (SIGTERM) unwind like any error, so that half-written files are removed.

    Python would end on the spot. Signals are the main thread's; elsewhere, and where the caller has a handler of its
    own, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _said(message: str, status: int, words: Sequence[str]) -> int:
    """Say what is wrong to the person, and to the program that asked for JSON; return the exit status."""
    if "--json" in words:
        import json

        with contextlib.suppress(OSError):
            print(json.dumps({"error": spelled(message)}), flush=True)
    print(f"edge-embed: {message}", file=sys.stderr)
    return status


def _abandon_stdout() -> None:
    """Let nothing be written to a stdout that takes nothing, when Python closes it."""
    # Closed from the start: nothing is written there anyway, and the number may be another file's by now.
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"edge-embed {__version__}")
        return 0
    # Importing makes many objects that live to the end: a collector that walks them again and again finds nothing.
    gc.disable()
    command = _command(words[0])
    gc.freeze()
    gc.enable()
    parser = _Parser(
        prog=f"edge-embed {command.name}",
        description=command.summary,
        epilog=f"example:\n  {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return command.run(parser.parse_args(words[1:]))


def _command(name: str) -> Command:
    if name in BOARD_COMMANDS:
        return _loaded(BOARD_COMMANDS[name])
    places = _registered()
    if name not in places:
        raise UsageError(f"expected a command of {', '.join(sorted({*BOARD_COMMANDS, *places}))}, found {name!r}")
    return _loaded(places[name])


def _loaded(place: str) -> Command:
    module, _, attribute = place.partition(":")
    command: Command = getattr(importlib.import_module(module), attribute)
    return command


def _registered() -> dict[str, str]:
    # Reading the metadata of every installed package costs tens of milliseconds; a lookup never comes here.
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def _overview() -> str:
    known = [_loaded(place) for place in (*BOARD_COMMANDS.values(), *_registered().values())]
    commands = sorted((command for command in known if command.offered), key=lambda command: command.name)
    width = max(len(command.name) for command in commands)
    lines = [f"  {command.name:{width}}  {command.summary}" for command in commands]
    for extra in sorted({command.extra for command in known if not command.offered}):
        names = sorted(command.name for command in known if command.extra == extra)
        lines += ["", f"the extra edge-embed[{extra}] adds: {', '.join(names)}"]
    return "\n".join(
        (
            "usage: edge-embed COMMAND ...",
            "",
            "Embeddings on embedded devices: small bundles, measured, served and swapped on ARM boards.",
            "",
            *lines,
            "",
            "edge-embed COMMAND --help shows the arguments and an example.",
        )
    )
