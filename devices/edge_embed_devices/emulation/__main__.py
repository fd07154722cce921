"""``python -m edge_embed_devices.emulation [NAME...]`` makes emulated boards and prints what runs their Pythons."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge_embed_devices.emulation.debian import UnavailableError
from edge_embed_devices.emulation.userlands import USERLANDS, install, make


def main() -> int:
    """Make emulated boards and print the Python of each."""
    parser = argparse.ArgumentParser(prog="edge_embed_devices.emulation", description="make emulated ARM boards")
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help=f"some of {', '.join(USERLANDS)}; all if none is named"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".venv", "boards"), help="where they are kept (.venv/boards)"
    )
    parser.add_argument(
        "--wheels", metavar="FOLDER", type=Path, help="install edge-embed from what make wheels made there"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(USERLANDS):
        parser.error(f"expected some of {', '.join(USERLANDS)}, found {', '.join(sorted(unknown))}")
    kept = arguments.folder.absolute()
    for name in arguments.names or USERLANDS:
        userland = USERLANDS[name]
        prefix = ""
        try:
            pythons = make(userland, kept)
            if arguments.wheels is not None:
                wheel = next(arguments.wheels.absolute().glob(f"*_{userland.machine}.whl"), None)
                if wheel is None:
                    parser.error(f"{arguments.wheels}: expected a wheel for {userland.machine}, found none")
                site = kept / name / "edge-embed"
                install(wheel, site, userland)
                prefix = f"PYTHONPATH={site} "
        except UnavailableError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print("\n".join(f"{prefix}{python}" for python in pythons.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
