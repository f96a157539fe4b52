/* What the two rooms of the tables share. */
#ifndef SHADOWTRACE_TABLES_H
#define SHADOWTRACE_TABLES_H

#include "shadowtrace.h"

struct table {
    uint8_t copy[PAGE_BYTES]; /* what the stream has said it holds */
    uint64_t gfn;
    uint32_t links[TABLE_KINDS];
    uint32_t loaded;    /* vCPUs that have it as a root now */
    uint8_t root_kinds; /* kinds linked as a root */
    unsigned stores_left;
    struct table *previous, *next;
};

extern const uint8_t *ram;
extern uint64_t frames;
extern struct table **by_frame;
extern struct table *all;

/* ---- tables.c ---- */

bool is_linked(const struct table *table);
void relink(unsigned vcpu, struct table *table, const uint8_t *now, unsigned offset, unsigned size);
bool take_store(unsigned vcpu, struct table *table, const uint8_t *now, const struct record *event, const struct record *side);

/* ---- content.c ---- */

void emit_content(unsigned vcpu, uint64_t gfn, const uint8_t *page);
void look_again(unsigned vcpu, struct table *table);

#endif
