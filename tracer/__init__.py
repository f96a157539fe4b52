"""From a running guest to events: QEMU, gdb, the capture plugin, the guests we ship."""
