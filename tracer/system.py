"""A whole Debian on a disk, from its packages: kernel, initramfs and an ext4 image; the host's own system is not changed.

mmdebstrap installs the packages into a folder of its own, as root or in a user namespace, and gives a tar file. fakeroot has mke2fs
see the owners that are in it, whoever runs it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from db.errors import ShadowtraceError
from tracer import apt

_PACKAGES = ("systemd-sysv", "udev", "dbus", "initramfs-tools", "zstd")

#: Programs that have to be there, and Debian's packages with them.
TOOLS = {"mmdebstrap": "mmdebstrap", "fakeroot": "fakeroot", "mke2fs": "e2fsprogs"}

#: The disk's drivers alone: an initramfs with all of Debian's takes the guest several times as long to unpack.
_INITRAMFS = "MODULES=list\nCOMPRESS=zstd\n"
_MODULES = "virtio_pci\nvirtio_blk\next4\n"

#: When systemd has come to the multi-user target, the guest does its work and powers off.
_UNIT = """\
[Unit]
DefaultDependencies=no
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/echo shadowtrace: multi-user target
ExecStart={work}
ExecStart=/bin/echo shadowtrace: done
ExecStart=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
"""
_UNIT_PATH = "etc/systemd/system/shadowtrace.service"

#: Beside what is installed: room for what a running system writes.
_ROOM_BYTES = 128 << 20

#: What is not in the image, of every package.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

_NO_SYSTEM = "does this machine reach Debian's packages, and is there room for 1 GiB?"


@dataclass(frozen=True)
class System:
    """What a system is made of: a Debian release, packages besides those of every system, and the command that is its work."""

    release: str
    packages: tuple[str, ...]
    work: str


def build(system: System, arch: str, folder: Path) -> dict[str, Path]:
    """Make ``kernel``, ``initramfs`` and ``disk`` in an empty folder. Raises ``ShadowtraceError``; what was half made goes with the folder."""
    if missing := missing_tools():
        raise ShadowtraceError(f"there is no {', '.join(missing)} to make a system with", f"apt-get install {' '.join(missing)}")
    for name, content in (("initramfs", _INITRAMFS), ("modules", _MODULES), ("unit", _UNIT.format(work=system.work))):
        (folder / f"{name}.txt").write_text(content)
    tar = folder / "root.tar"
    _install(system, arch, folder, tar)
    root = folder / "root"
    root.mkdir()
    made = {name: folder / name for name in ("kernel", "initramfs", "disk")}
    size = tar.stat().st_size * 9 // 8 + _ROOM_BYTES
    script = (
        'tar --extract --file "$1" --directory "$2" && cp "$2"/boot/vmlinuz-* "$3" && cp "$2"/boot/initrd.img-* "$4" && rm -r "$2"/boot/* &&'
        # Files without any permission, which root alone reads.
        ' find "$2" -type f ! -perm -400 -exec chmod u+r {} + &&'
        ' mke2fs -q -t ext4 -U 00000000-0000-4000-8000-000000000000 -E hash_seed=00000000-0000-4000-8000-000000000000 -d "$2" "$5" "$6"k'
    )
    files = (tar, root, *made.values(), size >> 10)
    _run(["fakeroot", "sh", "-c", script, "sh", *map(str, files)], folder, "the disk image cannot be made")
    return made


def missing_tools() -> list[str]:
    """Debian's packages that systems are made with and that are not there."""
    return [package for program, package in TOOLS.items() if shutil.which(program, path=_path()) is None]


def _install(system: System, arch: str, folder: Path, tar: Path) -> None:
    def upload(name: str, to: str) -> str:
        return f"upload {shlex.quote(str(folder / name))} {to}"

    hooks = [
        '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"',
        f"--essential-hook={upload('initramfs.txt', '/etc/initramfs-tools/conf.d/shadowtrace')}",
        f"--essential-hook={upload('modules.txt', '/etc/initramfs-tools/modules')}",
        f"--customize-hook={upload('unit.txt', f'/{_UNIT_PATH}')}",
        '--customize-hook=chroot "$1" systemctl --quiet enable shadowtrace.service',
    ]
    _run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", f"--architectures={arch}"),
            f"--include={','.join((*_PACKAGES, *system.packages))}",
            '--aptopt=APT::Install-Recommends "false"',
            *(f'--aptopt={key} "{value}"' for key, value in apt.RETRIES.items()),
            *(f"--dpkgopt=path-exclude={glob}" for glob in _LEFT_OUT),
            *hooks,
            system.release,
            str(tar),
            *(f"deb [signed-by={apt.KEYRING}] {source}" for source in apt.sources(system.release)),
        ],
        folder,
        f"Debian {system.release} cannot be installed into an image",
    )


def _path() -> str:
    """mke2fs lies where only root looks by itself."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(command: Sequence[str], folder: Path, what: str) -> None:
    environment = {**os.environ, "PATH": _path(), "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    if os.geteuid() == 0:
        # Others have mmdebstrap's own: in a user namespace it is somebody else, who cannot enter a private folder.
        environment["TMPDIR"] = str(folder)
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise ShadowtraceError(f"{what}: {apt.complaint(done.stderr)}", _NO_SYSTEM)
