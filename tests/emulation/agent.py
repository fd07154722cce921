"""What runs the commands of ``power_cuts.py`` on the board, in the place of its shell, which it answers like.

Each runs in a process of its own, but one that has imported already what takes an emulator ten seconds to import.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from pathlib import Path

from edge_embed.commands import main
from edge_embed_devices.emulation.machine import DONE
from tests.crash import naive
from tests.emulation import on_board


def _run(words: list[str]) -> int:
    if words[0] == "served":
        print(json.dumps(on_board.served(Path(words[1]))))
        return 0
    return naive.main(*words[1:]) if words[0] == "naive" else main(words)


def _be(words: list[str]) -> None:
    """Be the process of a command."""
    status = 1
    try:
        status = _run(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


print(f"{DONE}0", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        _be(shlex.split(line))
    print(f"{DONE}{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
