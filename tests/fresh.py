"""README's first command on bare Debian systems, as a new user would give it: ``make test-fresh``, as root.

Each system is made by debootstrap in a private folder, of its smallest variant and what README asks for, and removed in the end. On the
one the user is root, on the other one who has sudo. The systems have this machine's resolver and certificates, by which it reaches the
network; nothing else of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.figures import note  # noqa: E402 - it lies beside this script

MIRROR = "http://deb.debian.org/debian"

#: What README says has to be there, and certificates for pip.
BEFORE = ["git", "make", "python3", "ca-certificates"]

#: What a machine of one's own lends to the system: how it reaches the network.
LENT = ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt")

#: Parts of what the command has to print, in their order.
PRINTED = (
    r"== installing Debian packages:.* qemu-system-x86",
    r"== making \.venv",
    r"== recording a boot of Debian's cloud kernel into demo\.db",
    r"demo\.db: [\d,]+ events, 0 lost; poweroff: the guest powered off",
    r"tables checked against guest memory: [\d,]+ entries, 0 missing, 0 differ",
    r"kvm-2\.6\.20 · 256 shadow pages .* replayed by the fast core",
    r"Where the cache found its pages",
    r"Worth a look",
)

#: Mounts of the system's own, gone with the process that made them.
ENTER = """\
set -e
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 dev "$1/dev"
for node in null zero full random urandom tty; do touch "$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
mkdir "$1/dev/shm" "$1/dev/pts"
mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
ln -s /proc/self/fd "$1/dev/fd"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb su --login "$2" --command "$3"
"""


@dataclass(frozen=True)
class Bare:
    """A release, and who the new user is there."""

    release: str
    version: int
    user: str


SYSTEMS = (Bare("bookworm", 12, "root"), Bare("trixie", 13, "newcomer"))


def make(bare: Bare, folder: Path) -> None:
    """The system, with a clone of this repository in the user's home."""
    packages = [*BEFORE, *(["sudo"] if bare.user != "root" else [])]
    run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", bare.release, str(folder), MIRROR)
    for file in LENT:
        shutil.copyfile(f"/{file}", folder / file)
    home = folder / "root" if bare.user == "root" else folder / "home" / bare.user
    if bare.user != "root":
        run("chroot", str(folder), "useradd", "--create-home", "--shell", "/bin/bash", bare.user)
        (folder / "etc/sudoers.d/newcomer").write_text(f"{bare.user} ALL=(ALL) NOPASSWD: ALL\n")
    run("git", "clone", "--quiet", "--no-local", str(ROOT), str(home / "shadowtrace"))
    run("chroot", str(folder), "chown", "--recursive", bare.user, str(Path("/", home.relative_to(folder), "shadowtrace")))


def run(*command: str) -> None:
    """Run a command; where it fails, end with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        sys.exit(f"test-fresh: {' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")


def give(bare: Bare, folder: Path, command: str) -> tuple[int, str, float]:
    """Give a command as the new user: its exit code, what it printed, and the seconds it took."""
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", str(folder), bare.user, command]
    start = time.monotonic()
    with subprocess.Popen(
        enter, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        printed = ""
        for line in process.stdout or ():
            print(f"{time.monotonic() - start:5.0f} s  {line}", end="", flush=True)
            printed += line
    return process.returncode, printed, time.monotonic() - start


def missing(printed: str) -> list[str]:
    """What the command should have printed and did not, in its order."""
    at, lacking = 0, []
    for pattern in PRINTED:
        found = re.compile(pattern).search(printed, at)
        if found is None:
            lacking.append(pattern)
        else:
            at = found.end()
    return lacking


def main() -> None:
    """Try every system; exit with 1 where one fails."""
    if os.geteuid() or shutil.which("debootstrap") is None:
        sys.exit("test-fresh: it needs root, and debootstrap: sudo apt-get install debootstrap")
    failed = 0
    for bare in SYSTEMS:
        with tempfile.TemporaryDirectory(prefix="shadowtrace-fresh-") as private:
            folder = Path(private) / bare.release
            print(f"== Debian {bare.version}, as {bare.user}", flush=True)
            make(bare, folder)
            code, printed, seconds = give(bare, folder, "cd shadowtrace && make demo")
        lacking = missing(printed)
        failed += bool(code or lacking)
        print(
            f"== Debian {bare.version}: exit code {code} after {seconds:.0f} s" + "".join(f"\n   not printed: {text}" for text in lacking)
        )
        if not code and not lacking:
            note(f"`make demo` on a bare Debian {bare.version}", systems=1, failed=0, seconds=round(seconds))
    print(f"{len(SYSTEMS) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
