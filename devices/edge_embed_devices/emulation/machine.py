"""A whole board: a machine of qemu's that boots Debian's kernel, with a userland on a disk and a shell on its console.

* An initrd of BusyBox and the few modules by which the kernel reaches disks and the network; what runs then is a shell,
  and what it is told. The userland's disk is mounted read-only on ``/board``, in which ``python`` runs.
* Other disks are whoever's who boots it. One with a *log* has every write and flush of the machine recorded in their
  order (qemu's ``blklogwrites``), so that it can be brought back to what a power cut may leave.
* ``kill`` ends the machine as it is. Its memory is lost, and with it what its kernel had not written yet; what it had
  written is in the disk's file, whether flushed or not.
* This machine is 10.0.2.2 to the board.

    NAME/machine/{kernel,initrd,root.img}     made once, beside the userland (userlands.py)
"""

from __future__ import annotations

import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self, cast

from edge_embed.errors import EdgeEmbedError
from edge_embed_devices.emulation import userlands
from edge_embed_devices.emulation.debian import UnavailableError, run, tool, unpack
from edge_embed_devices.emulation.userlands import Userland

#: This machine, as the board sees it.
HOST = "10.0.2.2"
#: Where the board sees what ``disk_of_site`` made, and where other disks may be mounted.
SITE, STORE = "/site", "/store"

_CORE = "cortex-a72"
_RELEASE = "bookworm"
_PACKAGES = ("linux-image-cloud-arm64", "busybox-static")
_MODULES = ("virtio_mmio", "virtio_blk", "virtio_net")
_MOUNT_POINTS = ("proc", "sys", "dev", "tmp", SITE[1:], STORE[1:])
#: What an update imports; the rest is compiled by who imports it.
_IMPORTED = ("numpy", "tuf", "securesystemslib", "urllib3", "cryptography")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")

_BLOCK_BYTES = 4096
_SPARE_MIB = 64
_BOOT_SECONDS = 180.0
_COMMAND_SECONDS = 600.0

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in {modules}; do insmod /lib/$module.ko; done
ifconfig lo 127.0.0.1; ifconfig eth0 10.0.2.15
mount -t ext4 -o ro LABEL=root /board
for folder in dev proc sys; do mount --bind /$folder /board/$folder; done
mount -t tmpfs tmp /board/tmp
mount -t ext4 -o ro LABEL=site /board{site}
stty -echo -onlcr
echo {ready}
while read -r line; do eval "$line"; echo "{done}$?"; done
"""
_READY = "the board is ready"
#: With what the shell says that a command is done; its status follows.
DONE = "the status is "


class MachineError(EdgeEmbedError):
    """A machine did not boot, or went off by itself."""


class Firmware(NamedTuple):
    """What a machine boots from, and the Python of its userland as this machine runs it."""

    kernel: Path
    initrd: Path
    root: Path
    python: Path


class Disk(NamedTuple):
    """A disk of a machine: its file, and where every write to it is recorded."""

    image: Path
    log: Path | None = None


class Said(NamedTuple):
    """What the board printed on a command, and the command's status."""

    status: int
    text: str


def make(userland: Userland, kept: Path) -> Firmware:
    """Make what a machine boots from, unless it is there.

    Args:
        userland: what runs on it; of arm64.
        kept: the folder that holds all userlands.

    Raises:
        UnavailableError: qemu, a tool, the archive, or the network is not to be had here.
    """
    tool("qemu-system-aarch64", "qemu-system-arm")
    python = userlands.make(userland, kept)[_CORE]
    folder = kept / userland.name / "machine"
    with userlands.one_at_a_time(kept / f"{userland.name}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=kept) as place:
                _make(userland, kept / userland.name / "root", python, Path(place))
                (Path(place) / "machine").rename(folder)
    return Firmware(folder / "kernel", folder / "initrd", folder / "root.img", python)


def _make(userland: Userland, root: Path, python: Path, place: Path) -> None:
    made, linux, copy = place / "machine", place / "linux", place / "root"
    made.mkdir()
    unpack(_PACKAGES, _RELEASE, userland.architecture, linux)
    (kernel,) = linux.glob("boot/vmlinuz-*")
    shutil.copy(kernel, made / "kernel")
    (made / "initrd").write_bytes(_initrd(linux))
    # By links: what is compiled and mounted there is the copy's alone.
    run(["cp", "-al", str(root), str(copy)])
    for name in _MOUNT_POINTS:
        (copy / name).mkdir()
    packages = [copy / "usr" / "lib" / "python3" / "dist-packages" / name for name in _IMPORTED]
    _compile(python, [copy / "usr" / "lib" / f"python{userland.python}", *(p for p in packages if p.is_dir())])
    make_disk(made / "root.img", "root", copy)


def make_disk(image: Path, label: str, folder: Path, *, size_mib: int | None = None) -> None:
    """Make a disk with an ext4 file system that holds a copy of a folder; its size is the folder's, and some more.

    Raises:
        UnavailableError: there is no mke2fs here.
    """
    if size_mib is None:
        used = sum(path.stat().st_size + _BLOCK_BYTES for path in folder.rglob("*") if not path.is_symlink())
        size_mib = used // 2**20 + _SPARE_MIB
    # Nothing is left to be done in the background of a first mount.
    command = [tool("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    command += ["-b", str(_BLOCK_BYTES), "-L", label, "-d", str(folder), str(image), f"{size_mib}M"]
    image.unlink(missing_ok=True)
    run(command)


def disk_of_site(image: Path, site: Path, firmware: Firmware) -> None:
    """Make the disk of edge-embed itself, of a folder in which its wheel was installed for the userland."""
    _compile(firmware.python, [site])
    make_disk(image, "site", site)


class Machine:
    """A board that runs, until it is killed. Use as a context manager.

    Disks are found by their labels, whatever Linux calls them; one has to be labelled ``site``.
    """

    def __init__(self, firmware: Firmware, disks: Sequence[Disk], console: Path) -> None:
        """Describe it: what it boots from, its other disks, and the file to which its console is appended."""
        self._command = [tool("qemu-system-aarch64", "qemu-system-arm"), "-M", "virt", "-cpu", _CORE]
        self._command += ["-m", "512M", "-smp", "2", "-nodefaults", "-display", "none", "-serial", "stdio"]
        self._command += ["-kernel", str(firmware.kernel), "-initrd", str(firmware.initrd), "-no-reboot"]
        self._command += ["-append", "console=ttyAMA0 quiet loglevel=3 panic=-1"]
        self._command += ["-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net"]
        self._add_disk("root", f"format=raw,readonly=on,file={firmware.root}")
        for number, disk in enumerate(disks):
            if disk.log is None:
                self._add_disk(f"disk{number}", f"format=raw,readonly=on,file={disk.image}")
            else:
                file, log = f"file.driver=file,file.filename={disk.image}", f"log.driver=file,log.filename={disk.log}"
                self._add_disk(f"disk{number}", f"driver=blklogwrites,{file},{log}")
        self._console = console
        self._read = b""

    def _add_disk(self, name: str, what: str) -> None:
        self._command += ["-drive", f"if=none,id={name},{what}", "-device", f"virtio-blk-device,drive={name}"]

    def __enter__(self) -> Self:
        """Boot.

        Raises:
            MachineError: it does not come up.
        """
        pipe = subprocess.PIPE
        self._began = time.monotonic()
        self._log = self._console.open("ab")
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0)
        self._stdin, self._stdout = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        try:
            if not any(line == _READY for line in self._lines(_BOOT_SECONDS)):
                raise MachineError(f"expected a board that boots within {_BOOT_SECONDS:g} seconds, see {self._console}")
        except BaseException:
            self.kill()
            raise
        return self

    def run(self, command: str, seconds: float = _COMMAND_SECONDS) -> Said | None:
        """Let the board's shell run a command; return what it said, or None if it is not done in so many seconds.

        Raises:
            MachineError: the machine is off.
        """
        self._log.write(f"# {time.monotonic() - self._began:.1f} s: {command}\n".encode())
        self._stdin.write(f"{command}\n".encode())
        text: list[str] = []
        for line in self._lines(seconds):
            if line.startswith(DONE):
                return Said(int(line.removeprefix(DONE)), "\n".join(text))
            text.append(line)
        return None

    def kill(self) -> None:
        """End the machine as a power cut does."""
        self._process.kill()
        self._log.write(self._process.communicate()[0])
        self._log.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _lines(self, seconds: float) -> Iterator[str]:
        """Yield what the console says, line by line, for so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            line, newline, rest = self._read.partition(b"\n")
            if newline:
                self._read = rest
                yield line.decode(errors="replace").rstrip("\r")
            elif select.select([self._stdout], [], [], left)[0]:
                said = self._stdout.read(65536)
                if not said:
                    raise MachineError(f"expected a board that runs, found it off, see {self._console}")
                self._log.write(said)
                self._log.flush()
                self._read += said


def python(*words: str) -> str:
    """Return the command that runs the userland's Python, which sees edge-embed."""
    return f"env PYTHONPATH={SITE} chroot /board /usr/bin/python3 -P {shlex.join(words)}"


def _initrd(linux: Path) -> bytes:
    """Return BusyBox, the modules and what runs first."""
    modules = _with_needs({path.stem.replace("-", "_"): path for path in linux.glob("usr/lib/modules/**/*.ko")})
    init = _INIT.format(modules=" ".join(modules), site=SITE, ready=_READY, done=DONE)
    files = {"init": init.encode(), "bin/busybox": (linux / "usr" / "bin" / "busybox").read_bytes()}
    files |= {f"lib/{name}.ko": module for name, module in modules.items()}
    return _cpio(("bin", "lib", "dev", "proc", "sys", "board"), files)


def _with_needs(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Return the modules in the order in which they can be loaded, each behind those that it says it needs."""
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name and name not in found:
            if name not in paths:
                raise UnavailableError(f"expected a kernel with the module {name}, found none")
            module = paths[name].read_bytes()
            needs = _DEPENDS.search(module)
            for needed in needs[1].decode().split(",") if needs else ():
                add(needed)
            found[name] = module

    for name in _MODULES:
        add(name)
    return found


def _cpio(folders: Sequence[str], files: Mapping[str, bytes]) -> bytes:
    """Return an archive as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    entries = [(name, 0o40755, b"", 0) for name in folders]
    # The kernel opens it for what runs first, before anything is mounted.
    entries += [("dev/console", 0o20600, b"", 1)]
    entries += [(name, 0o100755, data, 0) for name, data in files.items()]
    archive = bytearray()
    for number, (name, mode, data, minor) in enumerate([*entries, ("TRAILER!!!", 0, b"", 0)]):
        title = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 5 * minor, minor, len(title), 0)
        for part in (b"070701" + b"".join(b"%08x" % field for field in fields) + title, data):
            archive += part + bytes(-(len(archive) + len(part)) % 4)
    return bytes(archive)


def _compile(python: Path, folders: Sequence[Path]) -> None:
    """Compile modules to what the userland's Python would make of them when it first imports them."""
    run(
        [
            str(python),
            "-P",
            "-m",
            "compileall",
            "-q",
            "-j",
            "0",
            "-x",
            "edge_embed_export|lib2to3|/test",
            *map(str, folders),
        ]
    )
