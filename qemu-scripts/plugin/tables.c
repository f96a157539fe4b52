/*
 * Which frames are page tables.
 *
 * A frame becomes a table when a walk from a loaded root reaches it: its content goes into the stream before anything
 * that depends on it. Links are counted for each (frame, kind); a link is a present entry of a linked table, or a root.
 * A root stays linked when another is loaded, until the first store to it. After its last link went, a table is watched
 * for `retire_after_stores` (at least 1) more stores and then retired: it is recycled as data soon, and its stores are no table writes any more.
 */
#define _GNU_SOURCE
#include <linux/membarrier.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tables.h"

_Atomic uint64_t tables_generation = 1;

const uint8_t *ram;
uint64_t frames;
struct table **by_frame;
struct table *all;

static unsigned retire_after_stores, max_tables;
static bool several, pse;

bool tables_open(int ram_fd, uint64_t ram_bytes, unsigned stores_after, unsigned most, bool several_vcpus)
{
    ram = mmap(NULL, ram_bytes, PROT_READ, MAP_SHARED, ram_fd, 0);
    frames = ram_bytes / PAGE_BYTES;
    by_frame = calloc(frames, sizeof *by_frame);
    retire_after_stores = stores_after;
    max_tables = most;
    several = several_vcpus;
    if (several && syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) < 0) {
        return false;
    }
    return ram != MAP_FAILED && by_frame != NULL;
}

/* RAM that the file holds as the guest sees it: not the legacy hole and the BIOS area, where reads may come from ROM. */
bool tables_in_ram(uint64_t gpa, size_t bytes)
{
    return gpa + bytes <= frames * PAGE_BYTES && !(gpa + bytes > 0xa0000 && gpa < 0x100000);
}

void tables_read(uint64_t gpa, void *to, size_t bytes)
{
    memset(to, 0, bytes);
    if (tables_in_ram(gpa, bytes)) {
        memcpy(to, ram + gpa, bytes);
    }
}

bool tables_is_tracked(uint64_t gpa)
{
    uint64_t gfn = gpa >> PAGE_SHIFT;

    return gfn < frames && by_frame[gfn] != NULL;
}

static bool has_children(enum table_kind kind)
{
    return kind != T64_L1 && kind != T32_L1;
}

/* Whether a store to a tracked page can make another page a table. */
bool tables_may_link(uint64_t gpa)
{
    const struct table *table = by_frame[gpa >> PAGE_SHIFT];

    for (unsigned kind = 0; table && kind < TABLE_KINDS; kind++) {
        if (table->links[kind] && has_children(kind)) {
            return true;
        }
    }
    return false;
}

/* A set of tables in 64 bits: a table may share its bit with others, then more is dropped than need be. */
uint64_t table_bit(uint64_t gpa)
{
    return 1ull << ((gpa >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 58);
}

static struct table *track(unsigned vcpu, uint64_t gfn)
{
    struct control *control = stream_control();
    struct table *table;

    if (control->tables >= max_tables || !(table = calloc(1, sizeof *table))) {
        control->tables_refused++;
        return NULL;
    }
    table->gfn = gfn;
    table->next = all;
    if (all) {
        all->previous = table;
    }
    all = table;
    by_frame[gfn] = table;
    control->tables++;
    if (control->tables > control->tables_peak) {
        control->tables_peak = control->tables;
    }
    /* From here on every store to the page takes the slow path; stores that did not have reached RAM before the copy. */
    outdate_store_caches();
    if (several) {
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    }
    memcpy(table->copy, ram + gfn * PAGE_BYTES, PAGE_BYTES);
    emit_content(vcpu, gfn, table->copy);
    return table;
}

static void retire(struct table *table)
{
    if (table->previous) {
        table->previous->next = table->next;
    } else {
        all = table->next;
    }
    if (table->next) {
        table->next->previous = table->previous;
    }
    by_frame[table->gfn] = NULL;
    stream_control()->tables--;
    free(table);
}

static unsigned entry_bytes(enum table_kind kind)
{
    return kind >= T32_L1 ? 4 : 8;
}

static uint64_t entry_at(const uint8_t *page, enum table_kind kind, unsigned index)
{
    uint64_t entry = 0;

    memcpy(&entry, page + index * entry_bytes(kind), entry_bytes(kind));
    return entry;
}

/* The frame of the table that an entry links, or UINT64_MAX if it links none. */
static uint64_t linked(enum table_kind kind, uint64_t entry)
{
    bool big = (entry & PTE_PS) && (kind == T64_L2 || kind == T64_L3 || (kind == T32_L2 && pse));

    if (!(entry & PTE_PRESENT) || big) {
        return UINT64_MAX;
    }
    return (entry & (kind >= T32_L1 ? BASE32 : BASE64)) >> PAGE_SHIFT;
}

static void link_table(unsigned vcpu, uint64_t gfn, enum table_kind kind);
static void unlink_table(uint64_t gfn, enum table_kind kind);

static void for_children(unsigned vcpu, const uint8_t *page, enum table_kind kind, bool come)
{
    if (!has_children(kind)) {
        return;
    }
    for (unsigned i = 0; i < PAGE_BYTES / entry_bytes(kind); i++) {
        uint64_t child = linked(kind, entry_at(page, kind, i));
        if (child == UINT64_MAX) {
            continue;
        }
        if (come) {
            link_table(vcpu, child, kind - 1);
        } else {
            unlink_table(child, kind - 1);
        }
    }
}

bool is_linked(const struct table *table)
{
    for (unsigned kind = 0; kind < TABLE_KINDS; kind++) {
        if (table->links[kind]) {
            return true;
        }
    }
    return false;
}

static void link_table(unsigned vcpu, uint64_t gfn, enum table_kind kind)
{
    struct table *table;

    if (gfn >= frames || !tables_in_ram(gfn << PAGE_SHIFT, PAGE_BYTES)) {
        return;
    }
    table = by_frame[gfn];
    if (!table) {
        table = track(vcpu, gfn);
    } else if (!is_linked(table)) {
        look_again(vcpu, table);
    }
    if (table && table->links[kind]++ == 0) {
        for_children(vcpu, table->copy, kind, true);
    }
}

static void unlink_table(uint64_t gfn, enum table_kind kind)
{
    struct table *table = gfn < frames ? by_frame[gfn] : NULL;

    if (!table || !table->links[kind] || --table->links[kind]) {
        return;
    }
    for_children(0, table->copy, kind, false);
    if (!is_linked(table)) {
        table->stores_left = retire_after_stores;
    }
}

struct table *tables_load_root(unsigned vcpu, uint64_t gfn, enum table_kind kind)
{
    struct table *table;

    if (gfn >= frames || !tables_in_ram(gfn << PAGE_SHIFT, PAGE_BYTES)) {
        return NULL;
    }
    table = by_frame[gfn];
    if (!table || !(table->root_kinds >> kind & 1)) {
        link_table(vcpu, gfn, kind);
        table = by_frame[gfn];
        if (!table) {
            return NULL;
        }
        table->root_kinds |= (uint8_t)(1u << kind);
    }
    table->loaded++;
    return table;
}

void tables_unload_root(struct table *root)
{
    root->loaded--;
}

static void expire_root(struct table *table)
{
    uint8_t kinds = table->root_kinds;

    table->root_kinds = 0;
    for (unsigned kind = 0; kind < TABLE_KINDS; kind++) {
        if (kinds >> kind & 1) {
            unlink_table(table->gfn, kind);
        }
    }
}

/* Take the bytes at `offset` from `now` into the table's copy, and follow the links they gain and lose: gains first. */
void relink(unsigned vcpu, struct table *table, const uint8_t *now, unsigned offset, unsigned size)
{
    uint8_t before[16];
    unsigned start = offset & ~7u, end = (offset + size + 7) & ~7u;

    memcpy(before, table->copy + start, end - start);
    memcpy(table->copy + start, now + start, end - start);
    for (unsigned kind = 0; kind < TABLE_KINDS; kind++) {
        if (!table->links[kind] || !has_children(kind)) {
            continue;
        }
        unsigned width = entry_bytes(kind);
        for (unsigned pass = 0; pass < 2; pass++) {
            for (unsigned at = start; at < end; at += width) {
                uint64_t old = linked(kind, entry_at(before, kind, (at - start) / width));
                uint64_t new = linked(kind, entry_at(table->copy, kind, at / width));
                if (old == new) {
                    continue;
                }
                if (pass == 0 && new != UINT64_MAX) {
                    link_table(vcpu, new, kind - 1);
                } else if (pass == 1 && old != UINT64_MAX) {
                    unlink_table(old, kind - 1);
                }
            }
        }
    }
}

/* Bytes that were stored to a table, 1 to 8 of them, within its page; `now` is the page as it is. False where it is a table no more. */
bool take_store(unsigned vcpu, struct table *table, const uint8_t *now, const struct record *event, const struct record *side)
{
    if (table->root_kinds && !table->loaded) {
        expire_root(table);
    }
    relink(vcpu, table, now, event->addr & (PAGE_BYTES - 1), event->flags & WRITE_SIZE);
    stream_event(event, side, side ? 1 : 0);
    if (!is_linked(table) && --table->stores_left == 0) {
        retire(table);
        return false;
    }
    return true;
}

/* A store of 1 to 8 bytes, within one page, to a tracked page, by the instruction at `pc`; RAM holds it already. */
void tables_store(unsigned vcpu, uint64_t gpa, unsigned size, uint64_t pc)
{
    struct record event = {.kind = REC_WRITE, .vcpu = (uint8_t)vcpu, .flags = (uint16_t)(size | WRITE_HAS_PC), .addr = gpa};
    struct record side = {.kind = REC_PC, .vcpu = (uint8_t)vcpu, .addr = pc};
    uint8_t now[PAGE_BYTES];
    unsigned offset = gpa & (PAGE_BYTES - 1), start = offset & ~7u, end = (offset + size + 7) & ~7u;

    memcpy(now + start, ram + (gpa & ~(uint64_t)(PAGE_BYTES - 1)) + start, end - start);
    memcpy(&event.value, now + offset, size);
    take_store(vcpu, by_frame[gpa >> PAGE_SHIFT], now, &event, &side);
}

/* CR4.PSE decides whether bit 7 of a two-level directory's entry makes it a big page or means nothing. */
void tables_set_pse(unsigned vcpu, bool on)
{
    if (on == pse) {
        return;
    }
    for (struct table *table = all; table; table = table->next) {
        if (table->links[T32_L2]) {
            for_children(vcpu, table->copy, T32_L2, false);
        }
    }
    pse = on;
    for (struct table *table = all; table; table = table->next) {
        if (table->links[T32_L2]) {
            for_children(vcpu, table->copy, T32_L2, true);
        }
    }
}
