"""Cores that boards have, as qemu calls them, and the files by which Linux says which one it runs on.

Engines read these files and choose instructions by them. An emulated process sees the files of the machine that it
really runs on, unless others lie under its root: ONNX Runtime and LiteRT crash on those of x86-64. What they say must
be what the emulated core has, or an engine ends with an illegal instruction.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_CORES = 4
_RAM_KIB = 1024 * 1024
_ARMV8 = "fp asimd evtstrm crc32 cpuid"
_ARMV7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm"


class Core(NamedTuple):
    """A core of Arm's: its name, its part number (``MIDR_EL1``), what it has as Linux spells it."""

    name: str
    part: int
    features: str
    architecture: int = 8
    revision: int = 0


#: By the architecture as Debian calls it.
CORES = {
    "arm64": (
        Core("cortex-a53", 0xD03, _ARMV8, revision=4),
        Core("cortex-a72", 0xD08, _ARMV8, revision=3),
        Core("cortex-a76", 0xD0B, f"{_ARMV8} aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
    ),
    "armhf": (Core("cortex-a7", 0xC07, _ARMV7, architecture=7, revision=5),),
}


def write_identity(core: Core, root: Path) -> None:
    """Write the files of a board with four such cores and a GiB of memory under ``root``."""
    cpus = "".join(
        f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: {core.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: {core.architecture}\nCPU variant\t: 0x0\nCPU part\t: 0x{core.part:03x}\n"
        f"CPU revision\t: {core.revision}\n\n"
        for index in range(_CORES)
    )
    files = {
        "proc/cpuinfo": cpus,
        "proc/meminfo": f"MemTotal: {_RAM_KIB} kB\nMemFree: {_RAM_KIB // 2} kB\nMemAvailable: {_RAM_KIB // 2} kB\n",
        "proc/device-tree/model": f"emulated {core.name}\0",
    }
    system = "sys/devices/system/cpu"
    files |= {f"{system}/{name}": f"0-{_CORES - 1}\n" for name in ("possible", "present", "online")}
    for index in range(_CORES):
        topology = f"{system}/cpu{index}/topology"
        files[f"{topology}/core_id"] = f"{index}\n"
        files[f"{topology}/physical_package_id"] = "0\n"
        files[f"{topology}/core_siblings_list"] = f"0-{_CORES - 1}\n"
        files[f"{topology}/thread_siblings_list"] = f"{index}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
