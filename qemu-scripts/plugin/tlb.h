/*
 * QEMU 7.2's TLB, as it lies in the vCPU's object.
 *
 * tlb.c        what asks there, and what is told then
 * takeover.c   where it lies
 */
#ifndef SHADOWTRACE_TLB_H
#define SHADOWTRACE_TLB_H

#include "vcpu.h"

#pragma GCC visibility push(hidden)

#define VICTIMS 8u

/* Of an entry's comparator: no such access; and bits that send one that would hit out of the compiled code. */
#define NEVER UINT64_MAX
#define ASK_EACH_TIME 0x800u
#define MAY_HOLD_CODE 0x400u
#define IS_DEVICE 0x200u
#define IS_READ_ONLY 0x40u

struct entry {
    uint64_t compared[TOUCH_KINDS]; /* the virtual page, with bits */
    uint64_t to_host;               /* what to add to a virtual address */
};

#define ENTRY_SHIFT 5

struct tlb {
    uint64_t mask; /* entries less one, times an entry's size */
    struct entry *entries;
};

/* QEMU's walk of the guest's tables, which fills an entry, or does not return where there is a page fault. */
typedef bool fill_function(void *cpu, uint64_t va, int size, int access, int mode, bool probe, uintptr_t from);

/* What has been taken over. */
struct taken {
    void *cpu;
    struct tlb *tlbs;    /* one for each of QEMU's modes of access */
    int modes;           /* of the guest's accesses; those of QEMU's own walks come behind */
    unsigned user_modes; /* the set of the user's among them */
    uint8_t *first_victims;
    size_t victims_apart;
    uint64_t host_ram; /* where QEMU has mapped RAM */
    fill_function *fill;
    void (*flush)(void *cpu);
    bool (*unwind)(void *cpu, uintptr_t from, uint64_t data[3]);
};

extern struct taken taken;

bool take_over(int ram_fd, uint64_t running, fill_function *instead);

static inline bool is_user(int mode)
{
    return taken.user_modes >> mode & 1;
}

static inline struct entry *find(uint64_t va, int mode)
{
    const struct tlb *tlb = &taken.tlbs[mode];

    return &tlb->entries[(va >> PAGE_SHIFT) & (tlb->mask >> ENTRY_SHIFT)];
}

/* What was in its way goes where QEMU looks next. */
static inline struct entry *victims(int mode)
{
    return (struct entry *)(void *)(taken.first_victims + (size_t)mode * taken.victims_apart);
}

static inline bool holds(const struct entry *entry, unsigned kind, uint64_t va)
{
    uint64_t compared = entry->compared[kind];

    return compared != NEVER && !((compared ^ va) & ~(uint64_t)(PAGE_BYTES - 1));
}

#pragma GCC visibility pop

#endif
