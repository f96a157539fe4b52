/* What tables hold, held against what the stream has said of them. */
#include <string.h>

#include "tables.h"

void emit_content(unsigned vcpu, uint64_t gfn, const uint8_t *page)
{
    struct record sides[256];
    unsigned count = 0;
    uint64_t word;

    for (unsigned i = 0; i < 512; i++) {
        memcpy(&word, page + 8 * i, 8);
        if (!word) {
            continue;
        }
        struct record *side = &sides[count / 2];
        if (count % 2 == 0) {
            *side = (struct record){.kind = REC_WORDS, .vcpu = (uint8_t)vcpu, .flags = (uint16_t)i, .seq = NO_WORD, .addr = word};
        } else {
            side->seq = i;
            side->value = word;
        }
        count++;
    }
    unsigned n = (count + 1) / 2;
    struct record event = {.kind = REC_PAGE, .vcpu = (uint8_t)vcpu, .addr = gfn << PAGE_SHIFT, .value = n};
    stream_event(&event, sides, n);
}

/* Accessed and dirty bits, which the processor sets without a store: in each entry of a word. */
static uint64_t walker_bits(const struct table *table)
{
    bool wide = false;

    for (unsigned kind = T64_L1; kind <= T64_L5; kind++) {
        wide |= table->links[kind] != 0;
    }
    return wide && !table->links[T32_L1] && !table->links[T32_L2] ? 0x60ull : 0x60ull | 0x60ull << 32;
}

/* A page that is linked again: a device may have written to it meanwhile, which no store shows. */
void look_again(unsigned vcpu, struct table *table)
{
    const uint64_t ignored = walker_bits(table);
    const uint8_t *now = ram + table->gfn * PAGE_BYTES;

    for (unsigned at = 0; at < PAGE_BYTES; at += 8) {
        uint64_t ours, theirs;
        memcpy(&ours, table->copy + at, 8);
        memcpy(&theirs, now + at, 8);
        if ((ours ^ theirs) & ~ignored) {
            memcpy(table->copy, now, PAGE_BYTES);
            emit_content(vcpu, table->gfn, table->copy);
            return;
        }
    }
}

/* The words of a table that are not what the stream says, each as a store that nobody was seen to make. Whether there were any. */
static bool foreign_in(struct table *table)
{
    const uint64_t ignored = walker_bits(table);
    uint8_t now[PAGE_BYTES];
    bool found = false;

    memcpy(now, ram + table->gfn * PAGE_BYTES, PAGE_BYTES);
    for (unsigned at = 0; at < PAGE_BYTES; at += 8) {
        struct record event = {.kind = REC_WRITE, .flags = 8 | SEEN_FOREIGN, .addr = (table->gfn << PAGE_SHIFT) + at};
        uint64_t ours;
        memcpy(&ours, table->copy + at, 8);
        memcpy(&event.value, now + at, 8);
        if (!((ours ^ event.value) & ~ignored)) {
            /* Accessed and dirty bits: known from now on, so that the next comparison is one of whole pages. */
            memcpy(table->copy + at, now + at, 8);
        } else {
            found = true;
            if (!take_store(0, table, now, &event, NULL)) {
                break;
            }
        }
    }
    return found;
}

/*
 * Tables that changed without a store: by a device, a debugger, or in a way that QEMU does not show. To be asked while no
 * vCPU is between a store and its callback. The set of those found: table_bit()s.
 */
uint64_t tables_foreign(void)
{
    uint64_t found = 0;

    for (struct table *table = all, *next; table; table = next) {
        uint64_t gpa = table->gfn << PAGE_SHIFT;
        next = table->next;
        /* What was unlinked is data by now, and looked at again if it is linked again. */
        if (is_linked(table) && memcmp(table->copy, ram + gpa, PAGE_BYTES) != 0 && foreign_in(table)) {
            found |= table_bit(gpa);
        }
    }
    return found;
}

/*
 * PAE's PDPTEs as a processor takes them. QEMU's walker marks them as accessed, which none does: there the bit is reserved, and a
 * guest that copies its kernel's pointer would carry it into every address space.
 */
void tables_pdptes(uint64_t cr3, uint64_t pdptes[4])
{
    tables_read(cr3 & 0xffffffe0u, pdptes, 32);
    for (unsigned i = 0; i < 4; i++) {
        pdptes[i] &= ~PTE_ACCESSED;
    }
}

/* The content of the page where PAE's PDPTEs lie, though it is no table. */
void tables_pdpt(unsigned vcpu, uint64_t cr3)
{
    uint64_t gfn = (cr3 & 0xffffffffu) >> PAGE_SHIFT;
    uint64_t pdptes[4];
    uint8_t page[PAGE_BYTES];

    tables_read(gfn << PAGE_SHIFT, page, sizeof page);
    if (gfn < frames && by_frame[gfn]) {
        for (unsigned at = 0; at < PAGE_BYTES; at += 8) {
            relink(vcpu, by_frame[gfn], page, at, 8);
        }
    }
    tables_pdptes(cr3, pdptes);
    memcpy(page + (cr3 & 0xfe0), pdptes, sizeof pdptes);
    emit_content(vcpu, gfn, page);
}
