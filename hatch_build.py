"""Builds the C kernels into wheels and editable installs; where there is no compiler, the wheel is pure and works.

* One file for CPython 3.11 and newer (the stable ABI) and numpy 1.24 and newer.
* ``EDGE_EMBED_PURE=1`` leaves the kernels out; ``EDGE_EMBED_NATIVE=1`` makes their absence an error, for who
  publishes wheels; ``CC`` and ``CFLAGS`` are heeded, so a cross compiler or a sanitizer is one variable away. Who
  compiles for another machine (``wheels.py``) names its headers, ``EDGE_EMBED_HEADERS``, and the platform of the wheel,
  ``EDGE_EMBED_PLATFORM``.
* Only an editable install compiles into the tree: a wheel, maybe another machine's, leaves the tree's kernels alone.
* ``rows.c`` is compiled once for each instruction set that the kernels choose from when they are loaded.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("edge_embed", "kernels", "native")
EXTENSION = Path("edge_embed", "kernels", "_native.abi3.so")

#: No multiplication may fuse with an addition: numpy rounds twice.
_FLAGS = ("-O3", "-std=c11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")

#: The spellings of ``rows.c`` by the first word of the compiler's target: name and flags; the first runs everywhere.
_VARIANTS = {
    "x86_64": (
        ("baseline", ()),
        ("avx2", ("-mavx2", "-mf16c")),
        ("vnni", ("-mavx512bw", "-mavx512vnni", "-mf16c", "-mprefer-vector-width=256")),
    ),
    "aarch64": (("baseline", ()), ("dotprod", ("-march=armv8.2-a+dotprod",))),
    "arm": (("baseline", ()), ("neon", ("-march=armv7-a", "-mfpu=neon"))),
}
_ANYWHERE = (("baseline", ()),)


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the extension and puts it, with the tag that it makes true, into what is built."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say why the result is pure."""
        if self.target_name != "wheel" or os.environ.get("EDGE_EMBED_PURE", "0") not in ("", "0"):
            return
        self._folder = tempfile.TemporaryDirectory(prefix="edge-embed-wheel-")
        extension = Path(self.root, EXTENSION) if version == "editable" else Path(self._folder.name, EXTENSION.name)
        try:
            compile_kernels(Path(self.root), extension)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            if os.environ.get("EDGE_EMBED_NATIVE", "0") not in ("", "0"):
                raise
            self.app.display_warning(f"the kernels were not compiled, so numpy serves in their place: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{os.environ.get('EDGE_EMBED_PLATFORM') or _platform()}"
        if version == "editable":
            build_data["artifacts"].append(str(EXTENSION))
        else:
            build_data["force_include"][str(extension)] = str(EXTENSION)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled: the wheel has it."""
        if self._folder is not None:
            self._folder.cleanup()


def compile_kernels(root: Path, extension: Path) -> None:
    """Compile the extension.

    Raises:
        OSError: there is no compiler.
        ImportError: there is no numpy, or a Python without the stable ABI.
        subprocess.CalledProcessError: the compiler refused.
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise ImportError("a free-threaded Python has no stable ABI")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    includes = [option for folder in _headers() for option in ("-isystem", folder)]
    # Beside its place first: an extension that a process has mapped is replaced, never written over.
    made = extension.with_suffix(".new")
    options = (*includes, "-shared", *shlex.split(os.environ.get("CFLAGS", "")))
    link(compiler, root, made, root / SOURCES / "module.c", *options)
    made.replace(extension)


def link(compiler: Sequence[str], root: Path, made: Path, source: Path, *options: str) -> None:
    """Compile the kernels and the source that uses them, and link them to what ``options`` say.

    Args:
        compiler: the command, a cross compiler's maybe.
        root: the folder of the project.
        made: the file that is written.
        source: what the kernels serve: the module of Python, or a program that does without.
        options: for the compiler, beside those that the kernels need.

    Raises:
        OSError: there is no compiler.
        subprocess.CalledProcessError: the compiler refused.
    """
    command = [*compiler, *_FLAGS, *options]
    target = subprocess.run([*compiler, "-dumpmachine"], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(prefix="edge-embed-kernels-") as folder:
        objects = []

        def compiled(source: str, name: str, *more: str) -> None:
            objects.append(str(Path(folder, f"{name}.o")))
            subprocess.run([*command, *more, "-c", str(root / SOURCES / source), "-o", objects[-1]], check=True)

        for name in ("index", "choose", "search"):
            compiled(f"{name}.c", name)
        for name, more in _VARIANTS.get(target.split("-")[0], _ANYWHERE):
            compiled("rows.c", name, *more, f"-DEE_VARIANT=ee_{name}", f'-DEE_VARIANT_NAME="{name}"')
        subprocess.run([*command, str(source), *objects, "-lm", "-o", str(made)], check=True)


def _headers() -> list[str]:
    if named := os.environ.get("EDGE_EMBED_HEADERS"):
        return named.split(os.pathsep)
    import numpy as np

    return [sysconfig.get_path("include"), np.get_include()]


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    root = Path(__file__).parent
    compile_kernels(root, Path(sys.argv[1]) if len(sys.argv) > 1 else root / EXTENSION)
