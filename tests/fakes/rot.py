"""Flash that forgot a bit."""

from __future__ import annotations

from pathlib import Path


def rot(folder: Path, *places: int, name: str = "table.bin") -> None:
    """Flip a bit at some bytes of a file."""
    path = folder / name
    path.chmod(0o644)
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 4]))
    path.chmod(0o444)
