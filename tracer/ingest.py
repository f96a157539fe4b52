"""From the plugin's pipe and the guest's console into the trace file, on a thread of its own."""

from __future__ import annotations

import json
import os
import queue
import select
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from db.writer import TraceWriter
from tracer.plugin import Batch, Gap, StreamParser
from tracer.tasks import Named

_CHUNK = 1 << 20
_BATCH_SECONDS = 0.2
_BATCH_ROWS = 1 << 16

#: A guest may write megabytes: lines are broken here, and only so many are kept; the others are counted.
_LINE_BYTES = 4096
_CONSOLE_LINES = 100_000

#: Why events are missing where the recording may leave some out.
DROPPED = "the recorder was behind, and events were dropped"


class Ingest(threading.Thread):
    """Reads until the stream ends. ``failure`` is what stopped it early; ``consumed`` the events committed so far;
    ``stream_ended`` is true once the stream's last event is among them.

    The thread is the only one that touches the trace file while it runs; rows for other tables come through ``add``. A batch is
    committed at least every fifth of a second of arrivals, so a kill loses no more than that.
    """

    def __init__(self, writer: TraceWriter, stream: IO[bytes], console: IO[bytes], may_drop: bool = False) -> None:
        super().__init__(name="ingest", daemon=True)
        self.consumed = 0
        self.last_line = ""
        self.stream_ended = False
        self.failure: Exception | None = None
        self._writer = writer
        self._may_drop = may_drop
        self._stream, self._console = stream, console
        self._parser = StreamParser()
        self._rows: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._ids: dict[str, int] = {}
        self._line = b""
        self._lines_lost, self._lost_since = 0, 0
        self._wake_read, self._wake_write = os.pipe()
        self._finishing = False

    def add(self, table: str, **columns: Any) -> None:
        """Have a row written to a side table; it gets the next id."""
        self._rows.put((table, columns))
        os.write(self._wake_write, b"x")

    def finish(self) -> None:
        """Wait for the stream to end and everything to be committed. QEMU must have ended."""
        self._finishing = True
        os.write(self._wake_write, b"x")
        self.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def run(self) -> None:
        """The thread's body."""
        try:
            self._run()
        except Exception as error:
            self.failure = error
            # Nobody reads any more: a guest that waits for room in the pipe has to be told.
            self._stream.close()

    def _run(self) -> None:
        stream, console = self._stream.fileno(), self._console.fileno()
        sources = {stream, console, self._wake_read}
        held: list[bytes] = []
        held_bytes, since = 0, time.monotonic()
        while True:
            ready, _, _ = select.select(list(sources), [], [], _BATCH_SECONDS)
            if stream in ready:
                data = os.read(stream, _CHUNK)
                held.append(data)
                held_bytes += len(data)
                if not data:
                    sources.discard(stream)
            due = time.monotonic() - since >= _BATCH_SECONDS or held_bytes >= _BATCH_ROWS * 24 or stream not in sources
            if held and due:
                self._commit(self._parser.feed(b"".join(held)))
                held, held_bytes, since = [], 0, time.monotonic()
                self.stream_ended = stream not in sources
            if console in ready:
                data = os.read(console, _CHUNK)
                if not data:
                    sources.discard(console)
                self._take_console(data)
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            self._write_rows()
            if self._finishing and not {stream, console} & sources and not held:
                break
        self._end()

    def _end(self) -> None:
        if self._line:
            self._keep_lines(_pieces(self._line.rstrip(b"\r")))
        self._write_rows()
        if self._lines_lost:
            # The console is no event: none is counted as lost.
            cause = f"{self._lines_lost:,} lines of the console after the first {_CONSOLE_LINES:,}"
            self._row("loss", {"vcpu": 0, "seq": self._lost_since, "count": 0, "cause": cause})

    def _commit(self, batch: Batch) -> None:
        self._writer.append_rows(batch.rows(), batch.registers, batch.pdptes, batch.contents, batch.origins)
        self.consumed = self._writer.events
        if batch.names:
            self._writer.add_all("address_space", [self._numbered("address_space", space_row(*named)) for named in batch.names])
        for gap in batch.gaps:
            self._lose(gap, DROPPED if self._may_drop else "events are missing in the capture stream")

    def lose_the_rest(self, by_vcpu: Sequence[int], cause: str) -> None:
        """After ``finish``: count what never came, by the number of events that each vCPU had."""
        for gap in self._parser.gap_at_end(by_vcpu):
            self._lose(gap, cause)

    def _lose(self, gap: Gap, cause: str) -> None:
        last = gap.first + gap.missing - 1
        self._row("loss", {"vcpu": gap.vcpu, "seq": gap.seq, "first": gap.first, "last": last, "count": gap.missing, "cause": cause})

    def _write_rows(self) -> None:
        while True:
            try:
                table, columns = self._rows.get_nowait()
            except queue.Empty:
                return
            self._row(table, columns)

    def _row(self, table: str, columns: dict[str, Any]) -> None:
        self._writer.add(table, **self._numbered(table, columns))

    def _numbered(self, table: str, columns: dict[str, Any]) -> dict[str, Any]:
        """A row with the next id of its table."""
        self._ids[table] = self._ids.get(table, 0) + 1
        return {"id": self._ids[table], **columns}

    def _take_console(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        kept = [piece for line in lines for piece in _pieces(line.rstrip(b"\r"))]
        if len(self._line) > _LINE_BYTES:
            *whole, self._line = _pieces(self._line)
            kept += whole
        self._keep_lines(kept)

    def _keep_lines(self, lines: list[bytes]) -> None:
        """Write as many as there is room for, in one piece: a guest that writes thousands waits for each commit."""
        if not lines:
            return
        texts = [line.decode(errors="backslashreplace").replace("\0", "\\x00") for line in lines]
        self.last_line = texts[-1]
        first = self._ids.get("console", 0) + 1
        rows = [{"id": number, "seq": self.consumed, "line": text} for number, text in enumerate(texts, first) if number <= _CONSOLE_LINES]
        if rows:
            self._writer.add_all("console", rows)
            self._ids["console"] = first + len(rows) - 1
        if len(rows) < len(texts):
            if not self._lines_lost:
                self._lost_since = self.consumed
            self._lines_lost += len(texts) - len(rows)


def space_row(seq: int, named: Named) -> dict[str, Any]:
    """The row of ``address_space`` for what became of one behind an event."""
    words = None if named.argv is None else json.dumps(named.argv)
    root = named.root
    return {"seq": seq, "root_gfn": root >> 12, "root": root, "learnt": named.learnt, "pid": named.pid, "comm": named.comm, "argv": words}


def _pieces(line: bytes) -> list[bytes]:
    """A line in as many as it takes; an empty one is one too."""
    return [line[at : at + _LINE_BYTES] for at in range(0, max(len(line), 1), _LINE_BYTES)]
