-- Schema 2, from db/models.py and db/schema.py.

CREATE TABLE address_space (
    id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    root_gfn INTEGER NOT NULL,
    pid INTEGER,
    comm TEXT,
    root INTEGER,
    argv TEXT,
    learnt TEXT,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE console (
    id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE content (
    seq INTEGER NOT NULL,
    words BLOB NOT NULL,
    PRIMARY KEY (seq)
)
 STRICT;

CREATE TABLE end_table (
    id INTEGER NOT NULL,
    gfn INTEGER NOT NULL,
    level INTEGER NOT NULL,
    entry_bytes INTEGER NOT NULL,
    words BLOB NOT NULL,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE event (
    seq INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    vcpu INTEGER NOT NULL,
    flags INTEGER NOT NULL,
    addr INTEGER NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (seq)
)
 STRICT;

CREATE TABLE loss (
    id INTEGER NOT NULL,
    vcpu INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    first INTEGER,
    last INTEGER,
    count INTEGER NOT NULL,
    cause TEXT NOT NULL,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE mark (
    id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    name TEXT NOT NULL,
    vcpu INTEGER NOT NULL,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE memory_check (
    id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    tables INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    different INTEGER NOT NULL,
    leaves INTEGER,
    leaves_different INTEGER,
    detail TEXT NOT NULL,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE mode_registers (
    seq INTEGER NOT NULL,
    cr0 INTEGER,
    cr4 INTEGER,
    efer INTEGER,
    PRIMARY KEY (seq)
)
 STRICT;

CREATE TABLE pdptes (
    seq INTEGER NOT NULL,
    entry0 INTEGER NOT NULL,
    entry1 INTEGER NOT NULL,
    entry2 INTEGER NOT NULL,
    entry3 INTEGER NOT NULL,
    PRIMARY KEY (seq)
)
 STRICT;

CREATE TABLE recording (
    id INTEGER NOT NULL,
    source TEXT NOT NULL,
    guest TEXT NOT NULL,
    title TEXT NOT NULL,
    kernel TEXT,
    kernel_sha256 TEXT,
    unnamed TEXT,
    kernel_slide INTEGER,
    qemu_version TEXT,
    qemu_argv TEXT,
    gdb_version TEXT,
    engine TEXT,
    plugin_api INTEGER,
    told_by TEXT,
    cpu_model TEXT,
    ram_bytes INTEGER,
    vcpus INTEGER NOT NULL,
    touch TEXT,
    touch_entries INTEGER,
    drop_at_stores INTEGER,
    linger INTEGER,
    started TEXT,
    version TEXT NOT NULL,
    upgraded_by TEXT,
    ended TEXT,
    ended_detail TEXT,
    events INTEGER,
    lost INTEGER,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE run (
    id INTEGER NOT NULL,
    model TEXT NOT NULL,
    parameters TEXT NOT NULL,
    version TEXT NOT NULL,
    core TEXT NOT NULL,
    why TEXT,
    events INTEGER NOT NULL,
    seconds REAL NOT NULL,
    facts TEXT NOT NULL,
    PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE store_origin (
    seq INTEGER NOT NULL,
    pc INTEGER NOT NULL,
    PRIMARY KEY (seq)
)
 STRICT;

CREATE TABLE symbol (
    address INTEGER NOT NULL,
    size INTEGER NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (address)
)
 STRICT;

CREATE VIEW v_cr3_load AS SELECT e.seq, e.vcpu, printf('0x%x', e.addr) AS cr3, printf('0x%x', p.entry0) AS pdpte0, printf('0x%x', p.entry1) AS pdpte1, printf('0x%x', p.entry2) AS pdpte2, printf('0x%x', p.entry3) AS pdpte3, (SELECT a.comm FROM address_space a WHERE a.root_gfn = (e.addr >> 12) & 0xffffffffff AND a.seq < e.seq AND (p.seq IS NULL OR a.root IS NULL OR a.root = e.addr & 0xffffffe0) ORDER BY a.seq DESC, a.id DESC LIMIT 1) AS comm FROM event e LEFT JOIN pdptes p USING (seq) WHERE e.kind = 2;

CREATE VIEW v_pt_write AS SELECT seq, vcpu, printf('0x%x', addr) AS gpa, flags & 15 AS size, printf('0x%x', value) AS value, CASE flags >> 4 WHEN 0 THEN 'exact' WHEN 1 THEN 'net' WHEN 2 THEN 'snapshot' ELSE 'foreign' END AS seen, iif(o.pc IS NULL, NULL, printf('0x%x', o.pc)) AS pc, (SELECT s.name FROM symbol s WHERE o.pc - s.address BETWEEN 0 AND s.size - 1) AS function FROM event LEFT JOIN store_origin o USING (seq) WHERE kind = 3;

CREATE VIEW v_access AS SELECT seq, vcpu, printf('0x%x', addr) AS va, (flags & 1) != 0 AS write, (flags & 2) != 0 AS user, (flags & 4) != 0 AS fetch, (flags & 8) != 0 AS fault FROM event WHERE kind = 5;

CREATE VIEW v_mode_change AS SELECT e.seq, e.vcpu, printf('0x%x', m.cr0) AS cr0, printf('0x%x', m.cr4) AS cr4, printf('0x%x', m.efer) AS efer FROM event e JOIN mode_registers m USING (seq) WHERE e.kind = 1;

CREATE VIEW v_table_content AS SELECT e.seq, e.vcpu, printf('0x%x', e.addr) AS gpa, length(c.words) / 10 AS words FROM event e JOIN content c USING (seq) WHERE e.kind = 4;

CREATE VIEW v_invlpg AS SELECT seq, vcpu, printf('0x%x', addr) AS va FROM event WHERE kind = 6;

CREATE VIEW v_event_count AS SELECT CASE kind WHEN 1 THEN 'mode registers' WHEN 2 THEN 'cr3 load' WHEN 3 THEN 'store to a table' WHEN 4 THEN 'table content' WHEN 5 THEN 'access' ELSE 'INVLPG' END AS kind, count(*) AS events FROM event GROUP BY event.kind;
