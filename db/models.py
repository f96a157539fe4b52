"""The tables of a trace file. The comments are what docs/schema.md shows."""

from __future__ import annotations

from sqlalchemy import REAL, Column, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData()


def _table(name: str, about: str, *columns: Column[object]) -> Table:
    return Table(name, metadata, *columns, comment=about, sqlite_strict=True)


def _key(name: str, about: str) -> Column[object]:
    return Column(name, Integer, primary_key=True, autoincrement=False, comment=about)


def _integer(name: str, about: str, nullable: bool = False) -> Column[object]:
    return Column(name, Integer, nullable=nullable, comment=about)


def _text(name: str, about: str, nullable: bool = False) -> Column[object]:
    return Column(name, Text, nullable=nullable, comment=about)


recording = _table(
    "recording",
    "One row: what was recorded, and how it ended.",
    _key("id", "always 1"),
    _text("source", "`record`; `import` for events that another program wrote; `kvmmmu` for a live KVM's log: it has a run and no events"),
    _text("guest", "the guest recipe's name, or what the user said it was"),
    _text("title", "the guest in words"),
    _text("kernel", "the kernel's version as its image says it", nullable=True),
    _text("kernel_sha256", "SHA-256 of the kernel image", nullable=True),
    _text("unnamed", "why no address space has a program's name, and what would help; NULL: some have, or it is not known", nullable=True),
    _integer("kernel_slide", "how far the kernel was moved from where its image says; NULL: not known", nullable=True),
    _text("qemu_version", "QEMU's version", nullable=True),
    _text("qemu_argv", "QEMU's arguments, a JSON array", nullable=True),
    _text("gdb_version", "gdb's version", nullable=True),
    _text("engine", "what captured the events: `plugin`, `gdb`, or `gdb-net`", nullable=True),
    _integer("plugin_api", "version of QEMU's plugin API that the plugin used", nullable=True),
    _text("told_by", "how the plugin heard of loads and stores: `tlb`, by QEMU's own TLB; `callbacks`, one each", nullable=True),
    _text("cpu_model", "QEMU's CPU model", nullable=True),
    _integer("ram_bytes", "guest RAM", nullable=True),
    _integer("vcpus", "virtual CPUs"),
    _text("touch", "which accesses were recorded: `first` touches, `every` one from the first user process on, or `none`", nullable=True),
    _integer("touch_entries", "entries of each first-touch table", nullable=True),
    _integer(
        "drop_at_stores", "1: a store to a table dropped the touches that went through it, and was recorded as an access", nullable=True
    ),
    _integer("linger", "stores that a page is watched for after its last link as a table went", nullable=True),
    _text("started", "when, ISO 8601, UTC", nullable=True),
    _text("version", "the shadowtrace that wrote the file"),
    _text("upgraded_by", "the shadowtrace that brought the file to this schema, where that was done later", nullable=True),
    _text(
        "ended", "how it ended: `poweroff`, `reset`, `until`, `for`, `interrupted`, `crash`, `import`, ...; NULL: not sealed", nullable=True
    ),
    _text("ended_detail", "the same in a sentence", nullable=True),
    _integer("events", "events in the file when it was sealed", nullable=True),
    _integer("lost", "events known to be lost", nullable=True),
)

event = _table(
    "event",
    "Every event, in order of happening. x86/event.py says what the columns hold for each kind.",
    _key("seq", "position in the one total order, from 1"),
    _integer("kind", "1 mode registers, 2 cr3 load, 3 store to a table, 4 table content, 5 access, 6 INVLPG"),
    _integer("vcpu", "which virtual CPU"),
    _integer("flags", "by kind: size and how a store was seen; write, user, fetch, fault of an access"),
    _integer("addr", "by kind: the cr3 value, a physical or a virtual address; 64 bits in two's complement"),
    _integer("value", "by kind: the bytes stored; 64 bits in two's complement"),
)

mode_registers = _table(
    "mode_registers",
    "The values of a mode-register event; NULL: that register keeps its value.",
    _key("seq", "the event"),
    _integer("cr0", "CR0", nullable=True),
    _integer("cr4", "CR4", nullable=True),
    _integer("efer", "EFER", nullable=True),
)

pdptes = _table(
    "pdptes",
    "The four page-directory-pointer entries that a cr3 load in PAE mode read.",
    _key("seq", "the event"),
    *(_integer(f"entry{i}", f"PDPTE {i}") for i in range(4)),
)

content = _table(
    "content",
    "What a page held when it became a table, or when it was found to have changed unseen.",
    _key("seq", "the event"),
    Column("words", LargeBinary, nullable=False, comment="the words that are not zero: 2 bytes of index, 8 of word, little-endian"),
)

store_origin = _table(
    "store_origin",
    "Which guest instruction made a store to a table; none for a store that no instruction made, or that was not seen itself.",
    _key("seq", "the event"),
    _integer("pc", "virtual address of the instruction; 64 bits in two's complement"),
)

symbol = _table(
    "symbol",
    "The kernel's functions that the instructions in `store_origin` belong to.",
    _key("address", "where the function began in the guest: the image's address plus `kernel_slide`; 64 bits in two's complement"),
    _integer("size", "bytes up to the next function"),
    _text("name", "its name, from the kernel image"),
)

mark = _table(
    "mark",
    "Named moments: phases of the boot, symbols that were asked for.",
    _key("id", "from 1"),
    _integer("seq", "the last event before it; 0: before all"),
    _text("name", "`reset`, `kernel entry`, `start_kernel`, `first user process`, or a symbol"),
    _integer("vcpu", "which virtual CPU stopped there"),
)

address_space = _table(
    "address_space",
    "What became of address spaces: their names, valid for that root from `seq` on until the next row for it, and their ends.",
    _key("id", "from 1"),
    _integer("seq", "the last event before it"),
    _integer("root_gfn", "frame of the top table"),
    _integer("pid", "process id; NULL: an address space of the kernel itself, or its end", nullable=True),
    _text("comm", "the program's name as the guest has it: data from the guest, never to be shown raw; NULL: it ended", nullable=True),
    _integer("root", "physical address of the top table: in PAE mode it has 32 bytes, and several share a frame", nullable=True),
    _text("argv", "its command line, a JSON array, cut at 2048 bytes: from the guest as well", nullable=True),
    _text(
        "learnt",
        "when: `exec`, a program was executed; `fork`, a process was forked; `symbol`, by a symbol of the kernel; `end`, the kernel freed "
        "the top table; NULL: an exec, in an older file",
        nullable=True,
    ),
)

console = _table(
    "console",
    "The guest's serial console; of one that writes more than 100,000 lines the first.",
    _key("id", "from 1"),
    _integer("seq", "events that were in the file when the line arrived"),
    _text("line", "the line, control characters and all, never to be shown raw; what has more than 4096 bytes goes on in the next row"),
)

loss = _table(
    "loss",
    "Events that are known to be missing, and lines of the console that were not kept.",
    _key("id", "from 1"),
    _integer("vcpu", "whose events"),
    _integer("seq", "the last event before the gap"),
    _integer("first", "the vCPU's own number, from 0, of the first event that is missing; NULL: not known", nullable=True),
    _integer("last", "of the last one", nullable=True),
    _integer("count", "how many events; 0: lines of the console alone, says the cause"),
    _text("cause", "why"),
)

memory_check = _table(
    "memory_check",
    "The recorded tables against the guest's real memory, at one moment.",
    _key("id", "from 1"),
    _integer("seq", "the last event before it"),
    _integer("tables", "table pages that a walk of the guest's memory reached"),
    _integer("entries", "entries in them that are present"),
    _integer("missing", "tables or entries that the events do not give"),
    _integer("different", "entries that the events give otherwise, accessed and dirty bits aside"),
    _integer("leaves", "translations of our own walk that were compared with QEMU's `info tlb`", nullable=True),
    _integer("leaves_different", "of these, translations that only one side has", nullable=True),
    _text("detail", "the first differences, in words"),
)

end_table = _table(
    "end_table",
    "The guest's real tables when the recording ended, from its memory: what the events have to rebuild.",
    _key("id", "from 1"),
    _integer("gfn", "frame of the table"),
    _integer("level", "its level, 1 = leaf table; a frame used at several levels has a row for each"),
    _integer("entry_bytes", "bytes of an entry: 4 for two-level paging, else 8"),
    Column("words", LargeBinary, nullable=False, comment="the words that are not zero, as in `content`"),
)

run = _table(
    "run",
    "A replay's facts.",
    _key("id", "from 1"),
    _text("model", "the model's name"),
    _text("parameters", "every parameter, a JSON object"),
    _text("version", "the shadowtrace that replayed"),
    _text("core", "which implementation of the model ran: `reference`, or `fast`, the compiled one"),
    _text("why", "why that one", nullable=True),
    _integer("events", "events replayed"),
    Column("seconds", REAL, nullable=False, comment="how long it took"),
    _text("facts", "a JSON object; docs/counters.md defines what is in it"),
)
