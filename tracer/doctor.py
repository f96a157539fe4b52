"""Whether a machine has what recording needs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from db.errors import ShadowtraceError
from tracer import gdb, guest, plugin, qemu, resources, system


@dataclass(frozen=True)
class Finding:
    """One thing that recording needs: whether it is there, what was found, how to get it."""

    what: str
    good: bool
    detail: str
    fix: str = ""


def findings() -> list[Finding]:
    """Everything that recording needs, looked for now."""
    return [_qemu(), _gdb(), _compiler(), _plugin(), _packages(), _systems(), *_guests()]


def _qemu() -> Finding:
    try:
        program = qemu.find_qemu(None)
    except ShadowtraceError as error:
        return Finding("QEMU", False, str(error), error.hint)
    version = qemu.qemu_version(program)
    return Finding("QEMU", True, f"{program}, version {version}")


def _gdb() -> Finding:
    try:
        program = gdb.find_gdb()
    except ShadowtraceError as error:
        return Finding("gdb", False, str(error), error.hint)
    return Finding("gdb", True, f"{program}, version {gdb.gdb_version(program)}")


def _compiler() -> Finding:
    found = shutil.which("cc")
    return Finding("C compiler", found is not None, found or "there is no cc", "apt-get install gcc libc6-dev")


def _plugin() -> Finding:
    """Built, and loaded by the QEMU there is: its API version is what the plugin reports back."""
    try:
        with qemu.Machine(
            qemu.find_qemu(None), ["-nodefaults", "-display", "none", "-m", "16M"], qemu.Capture(), plugin.build()
        ) as machine:
            api = machine.control().api
    except ShadowtraceError as error:
        return Finding("capture plugin", False, str(error), error.hint)
    return Finding("capture plugin", True, f"loads; QEMU's plugin API {api}")


def _packages() -> Finding:
    missing = [name for name in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(name) is None]
    detail = f"there is no {', '.join(missing)}" if missing else "apt-get and dpkg-deb are there"
    return Finding("Debian's packages for guests", not missing, detail, "guests are made from Debian's packages: this needs Debian")


def _systems() -> Finding:
    missing = system.missing_tools()
    detail = f"there is no {', '.join(missing)}" if missing else "mmdebstrap, fakeroot and mke2fs are there"
    return Finding("what whole systems are made with", not missing, detail, f"apt-get install {' '.join(missing)}")


def _guests() -> list[Finding]:
    kept = resources.cache("guests")
    return [
        Finding(f"guest {name}", True, "images are there" if (kept / name / "manifest.json").exists() else "fetched when first recorded")
        for name in guest.names()
    ]
