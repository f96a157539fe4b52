"""A trace for the Perfetto UI and its trace processor: TracePackets of TrackEvents.

Perfetto's time is in nanoseconds; ours is the number of the event: 1 event is 1 microsecond. Field numbers are those of
perfetto/protos/perfetto/trace/trace_packet.proto and track_event/*.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from analyzer.export.protobuf import double, integer, message, string
from analyzer.export.tracks import Item, Sample, Slice
from analyzer.reports.text import printable

#: Perfetto's nanoseconds in one event.
EVENT_NS = 1000

_PACKET = 1

_TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _INTERNED, _FLAGS, _TRACK = 8, 10, 11, 12, 13, 60
_STATE_CLEARED, _NEEDS_STATE = 1, 2

_BEGIN, _END, _INSTANT, _COUNTER = 1, 2, 3, 4
_TYPE, _UUID, _NAME_IID, _ANNOTATION, _DOUBLE_VALUE = 9, 11, 10, 4, 44


def packets(items: Iterable[Item]) -> Iterator[bytes]:
    """The packets of a whole trace file. Items of one track come in order of time; slices of one track do not overlap."""
    writer = _Writer()
    for item in items:
        uuid, described = writer.track(item.track, isinstance(item, Sample))
        yield from described
        if isinstance(item, Sample):
            yield _packet(
                item.seq, message(_TRACK_EVENT, integer(_TYPE, _COUNTER), integer(_UUID, uuid), double(_DOUBLE_VALUE, item.value))
            )
            continue
        name, interned = writer.name(item.name)
        details = b"".join(_detail(*pair) for pair in item.details.items())
        begin, seq = (_BEGIN, item.first) if isinstance(item, Slice) else (_INSTANT, item.seq)
        event = message(_TRACK_EVENT, integer(_TYPE, begin), integer(_UUID, uuid), integer(_NAME_IID, name), details)
        yield _packet(seq, event + interned)
        if isinstance(item, Slice):
            yield _packet(item.end, message(_TRACK_EVENT, integer(_TYPE, _END), integer(_UUID, uuid)))


class _Writer:
    """Which tracks have been described, and which names have numbers."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, ...], int] = {}
        self._names: dict[str, int] = {}

    def track(self, path: tuple[str, ...], counter: bool = False) -> tuple[int, list[bytes]]:
        """A track's number, and the packets that describe it and its groups where they are new."""
        if path in self._tracks:
            return self._tracks[path], []
        parent, packets = self.track(path[:-1]) if len(path) > 1 else (0, [])
        uuid = self._tracks[path] = len(self._tracks) + 1
        # uuid 1, name 2, parent_uuid 5, counter 8, child_ordering 11 (3: explicit), sibling_order_rank 12.
        fields = [integer(1, uuid), string(2, printable(path[-1])), integer(11, 3), integer(12, uuid)]
        fields += [integer(5, parent)] if parent else []
        fields += [message(8)] if counter else []
        flags = _STATE_CLEARED if uuid == 1 else _NEEDS_STATE
        packets.append(message(_PACKET, integer(_SEQUENCE, 1), integer(_FLAGS, flags), message(_TRACK, *fields)))
        return uuid, packets

    def name(self, text: str) -> tuple[int, bytes]:
        """A name's number, and the interned data that introduces it where it is new."""
        if text in self._names:
            return self._names[text], b""
        self._names[text] = len(self._names) + 1
        # InternedData.event_names 2: EventName iid 1, name 2.
        return self._names[text], message(_INTERNED, message(2, integer(1, self._names[text]), string(2, printable(text))))


def _packet(seq: int, data: bytes) -> bytes:
    return message(_PACKET, integer(_TIMESTAMP, seq * EVENT_NS), integer(_SEQUENCE, 1), integer(_FLAGS, _NEEDS_STATE), data)


def _detail(name: str, value: int | str) -> bytes:
    # DebugAnnotation: name 10, uint_value 3, string_value 6.
    return message(_ANNOTATION, string(10, name), integer(3, value) if isinstance(value, int) else string(6, value))
