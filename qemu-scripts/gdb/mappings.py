"""Which virtual addresses map which frames, and what is armed at them.

A frame of interest has spots: a whole page to watch for stores (a table), a few bytes to watch (a gate), an address to stop
at (an instruction). Each spot is armed in the stub at every virtual address that maps its frame, under any root that is tracked,
and taken back when the last mapping goes. Mappings come and go by the page and by ranges of many pages.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from memory import PAGE

BREAKPOINT, WRITES = 0, 2

#: In a key, bit 0 beside the page's address: code can be executed there.
EXECUTABLE = 1


class Arms(Protocol):
    """What sets and removes breakpoints and watchpoints: the stub."""

    def insert(self, kind: int, va: int, size: int) -> bool:
        """Set one."""

    def remove(self, kind: int, va: int, size: int) -> None:
        """Remove it."""


class Spot(NamedTuple):
    """Something in a frame to arm: kind of stop, offset in the page, bytes."""

    kind: int
    offset: int
    size: int


WHOLE_PAGE = Spot(WRITES, 0, PAGE)


class Mappings:
    """Mappings by frame, spots by frame, and what is armed: (kind, va, size) with how many mappings ask for it."""

    def __init__(self, arms: Arms) -> None:
        self._arms = arms
        self._pages: dict[int, dict[int, int]] = {}
        self._ranges: dict[tuple[int, int], dict[int, int]] = {}
        self._spots: dict[int, set[Spot]] = {}
        self._armed: dict[tuple[int, int, int], int] = {}
        self._watched: dict[int, dict[int, int]] = {}
        self.five_levels = False
        self.breakpoints = 0
        """Breakpoints that are set now."""
        self.refused = 0
        """Times that the stub refused to set one, or a watchpoint."""

    # -- mappings ----------------------------------------------------------------------------------------------------

    def add(self, key: int, gfn: int, frames: int) -> None:
        """From now on ``frames`` frames from ``gfn`` on are mapped at an address; ``key`` is that, or'ed with EXECUTABLE."""
        keys = self._pages.setdefault(gfn, {}) if frames == 1 else self._ranges.setdefault((gfn, frames), {})
        count = keys.get(key, 0)
        keys[key] = count + 1
        if not count:
            for frame in self._interesting(gfn, frames):
                self._each(frame, key + (frame - gfn) * PAGE, self._arm)

    def drop(self, key: int, gfn: int, frames: int) -> None:
        """That mapping is gone."""
        place, which = (self._pages, gfn) if frames == 1 else (self._ranges, (gfn, frames))
        keys = place.get(which)
        if not keys or key not in keys:
            return
        keys[key] -= 1
        if keys[key]:
            return
        del keys[key]
        if not keys:
            del place[which]
        for frame in self._interesting(gfn, frames):
            self._each(frame, key + (frame - gfn) * PAGE, self._disarm)

    def keys(self, gfn: int) -> list[int]:
        """Where a frame is mapped, each once."""
        found = list(self._pages.get(gfn, ()))
        for (first, frames), keys in self._ranges.items():
            if first <= gfn < first + frames:
                found += [key + (gfn - first) * PAGE for key in keys]
        return found

    def addresses(self, gfn: int) -> list[int]:
        """The canonical addresses at which a frame is mapped."""
        return [self._canonical(key & ~EXECUTABLE) for key in self.keys(gfn)]

    def _interesting(self, gfn: int, frames: int) -> list[int]:
        if frames == 1:
            return [gfn] if gfn in self._spots else []
        return [frame for frame in self._spots if gfn <= frame < gfn + frames]

    # -- spots -------------------------------------------------------------------------------------------------------

    def want(self, gfn: int, spot: Spot) -> None:
        """Have a spot armed wherever its frame is mapped, now and later."""
        spots = self._spots.setdefault(gfn, set())
        if spot not in spots:
            spots.add(spot)
            for key in self.keys(gfn):
                self._arm(gfn, key, spot)

    def forget(self, gfn: int, spot: Spot) -> None:
        """Take a spot back."""
        spots = self._spots.get(gfn, set())
        if spot in spots:
            spots.remove(spot)
            for key in self.keys(gfn):
                self._disarm(gfn, key, spot)
            if not spots:
                del self._spots[gfn]

    def spots(self, gfn: int) -> set[Spot]:
        """What is wanted in a frame."""
        return self._spots.get(gfn, set())

    def watched(self, va: int) -> list[int]:
        """The frames that a watchpoint starting at an address watches."""
        return list(self._watched.get(va, ()))

    # -- arms --------------------------------------------------------------------------------------------------------

    def _each(self, gfn: int, key: int, act: object) -> None:
        for spot in tuple(self._spots[gfn]):
            act(gfn, key, spot)  # type: ignore[operator]

    def _canonical(self, va: int) -> int:
        bits = 57 if self.five_levels else 48
        return va | (1 << 64) - (1 << bits) if va >> (bits - 1) & 1 else va

    def _arm(self, gfn: int, key: int, spot: Spot) -> None:
        if spot.kind == BREAKPOINT and not key & EXECUTABLE:
            return
        va = self._canonical(key & ~EXECUTABLE) + spot.offset
        self.stop_at(spot.kind, va, spot.size)
        if spot.kind == WRITES:
            frames = self._watched.setdefault(va, {})
            frames[gfn] = frames.get(gfn, 0) + 1

    def _disarm(self, gfn: int, key: int, spot: Spot) -> None:
        if spot.kind == BREAKPOINT and not key & EXECUTABLE:
            return
        va = self._canonical(key & ~EXECUTABLE) + spot.offset
        self.no_stop_at(spot.kind, va, spot.size)
        frames = self._watched.get(va, {}) if spot.kind == WRITES else {}
        if gfn in frames:
            frames[gfn] -= 1
            if not frames[gfn]:
                del frames[gfn]
            if not frames:
                del self._watched[va]

    def stop_at(self, kind: int, va: int, size: int) -> None:
        """Arm an address for one more reason."""
        armed = (kind, va, size)
        count = self._armed.get(armed, 0)
        if not count:
            self.refused += not self._arms.insert(*armed)
            self.breakpoints += kind == BREAKPOINT
        self._armed[armed] = count + 1

    def no_stop_at(self, kind: int, va: int, size: int) -> None:
        """One reason less."""
        armed = (kind, va, size)
        count = self._armed.get(armed, 0)
        if count == 1:
            del self._armed[armed]
            self._arms.remove(*armed)
            self.breakpoints -= kind == BREAKPOINT
        elif count:
            self._armed[armed] = count - 1

    def stops_at(self, va: int) -> bool:
        """Whether a breakpoint is set at an address."""
        return (BREAKPOINT, va, 1) in self._armed

    def disarm_all(self) -> None:
        """Leave nothing behind in the stub."""
        for armed in self._armed:
            self._arms.remove(*armed)
        self._armed.clear()
