/*
 * Touches: which pages were touched since their translations were last dropped, and what says nothing new to an access.
 */
#include <stdlib.h>
#include <string.h>

#include "vcpu.h"

/* Words of a set of slots. */
static unsigned slot_words(void)
{
    return (settings.touch_entries + 63) / 64;
}

static struct seen seen_tables[MAX_VCPUS], nothing_seen;

struct seen *own_seen(const struct vcpu *v)
{
    return &seen_tables[v - vcpus];
}

/* From any thread, once it is marked what is void: the vCPU's next access is looked at in full. */
void hide_seen(struct vcpu *v)
{
    atomic_store(&v->seen, &nothing_seen);
}

static void forget_seen(struct vcpu *v, enum touch kind, uint64_t tag)
{
    uint64_t page = (tag - 1) >> 1;

    if (settings.by_tlb && kind != TOUCH_FETCH) {
        tlb_forget(kind, page << PAGE_SHIFT, (tag - 1) & 1);
        return;
    }
    uint64_t *entry = &own_seen(v)->page[(tag - 1) & 1][page & (SEEN_SLOTS - 1)][kind];

    if (*entry == page << PAGE_SHIFT) {
        *entry = NO_PAGE;
    }
}

static void clear_seen(struct seen *seen, enum touch first, enum touch last)
{
    for (unsigned i = 0; i < 2 * SEEN_SLOTS; i++) {
        for (enum touch kind = first; kind <= last; kind++) {
            seen->page[i / SEEN_SLOTS][i % SEEN_SLOTS][kind] = NO_PAGE;
        }
    }
}

/* On the vCPU's thread: void what was marked, then let its table be used again. Nothing may be while something is pending. */
void catch_up(struct vcpu *v)
{
    uint64_t generation;

    if (v->pending || atomic_load_explicit(&v->seen, memory_order_relaxed) != &nothing_seen) {
        return;
    }
    /* First: what is marked from here on is hidden after that. */
    atomic_store(&v->seen, own_seen(v));
    if (atomic_exchange(&v->seen_stale, false)) {
        clear_seen(own_seen(v), TOUCH_LOAD, TOUCH_FETCH);
    }
    generation = atomic_load(&tables_generation);
    if (v->seen_generation != generation) {
        clear_seen(own_seen(v), TOUCH_STORE, TOUCH_STORE);
        v->seen_generation = generation;
    }
    if (atomic_load(&v->stored_tables)) {
        drop_touches(v);
    }
}

/* Tables were stored to: to every vCPU touches through them are none any more. */
void note_stored_tables(uint64_t tables)
{
    for (unsigned i = 0; settings.invalidate_on_pt_write && i < settings.vcpus; i++) {
        atomic_fetch_or(&vcpus[i].stored_tables, tables);
        hide_seen(&vcpus[i]);
        if (settings.by_tlb) {
            drop_touches(&vcpus[i]); /* an access that hits in the TLB would not ask */
        }
    }
}

/* With the lock held: no cache of pages that are no tables holds any more. */
void outdate_store_caches(void)
{
    atomic_fetch_add(&tables_generation, 1);
    for (unsigned i = 0; i < settings.vcpus; i++) {
        hide_seen(&vcpus[i]);
    }
    tlb_forget_all();
}

void drop_caches(struct vcpu *v)
{
    atomic_store(&v->seen_stale, true);
    hide_seen(v);
    memset(v->store_cache, 0, sizeof v->store_cache);
    for (unsigned kind = 0; settings.touch_entries && kind < TOUCH_KINDS; kind++) {
        memset(v->touched[kind], 0, settings.touch_entries * sizeof **v->touched);
        memset(v->slots[kind], 0, 64 * slot_words() * sizeof **v->slots);
    }
}

/* INVLPG drops one page's translation; a slot may hold another page, which stays. */
void forget_touch(struct vcpu *v, uint64_t page)
{
    for (unsigned kind = 0; settings.touch_entries && kind < TOUCH_KINDS; kind++) {
        uint64_t *entry = &v->touched[kind][page & (settings.touch_entries - 1)];
        if (*entry && (*entry - 1) >> 1 == page) {
            forget_seen(v, kind, *entry);
            *entry = 0;
        }
    }
}

/* With the lock held: an access that is a touch. */
void note_touch(unsigned vcpu, enum touch kind, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned slot = (va >> PAGE_SHIFT) & (settings.touch_entries - 1);
    static const uint16_t kind_flags[] = {0, ACCESS_WRITE, ACCESS_FETCH};
    uint16_t flags = (uint16_t)(kind_flags[kind] | (user ? ACCESS_USER : 0));
    struct record event = {.kind = REC_ACCESS, .vcpu = (uint8_t)vcpu, .flags = flags, .addr = va};

    stream_event(&event, NULL, 0);
    v->store_touch = kind == TOUCH_STORE ? va : NO_VA;
    if (v->touched[kind][slot]) {
        forget_seen(v, kind, v->touched[kind][slot]);
    }
    v->touched[kind][slot] = settings.every_access ? 0 : touch_tag(va, user);
    v->through[kind][slot] = 0;
    if (settings.invalidate_on_pt_write) {
        translate(v, va, &v->through[kind][slot]);
        for (uint64_t bits = v->through[kind][slot]; bits; bits &= bits - 1) {
            v->slots[kind][(unsigned)__builtin_ctzll(bits) * slot_words() + slot / 64] |= 1ull << slot % 64;
        }
    }
}

RARE void touch_slow(unsigned vcpu, enum touch kind, uint64_t va, bool user)
{
    pthread_mutex_lock(&lock);
    if (!closed) {
        if (kind == TOUCH_FETCH) {
            tlb_settle();
        }
        note_touch(vcpu, kind, va, user);
    }
    pthread_mutex_unlock(&lock);
}

/* A store to a table may make a model zap what went through it: touches that did are touches no more. */
RARE void drop_touches(struct vcpu *v)
{
    uint64_t stored = atomic_exchange(&v->stored_tables, 0);
    unsigned words = slot_words();

    for (unsigned kind = 0; kind < TOUCH_KINDS; kind++) {
        for (uint64_t bits = stored; bits; bits &= bits - 1) {
            uint64_t *slots = v->slots[kind] + (unsigned)__builtin_ctzll(bits) * words;
            for (unsigned i = 0; i < words; i++) {
                /* A slot may have been taken by another page since. */
                for (uint64_t left = slots[i]; left; left &= left - 1) {
                    unsigned slot = i * 64 + (unsigned)__builtin_ctzll(left);
                    if (v->touched[kind][slot] && v->through[kind][slot] & stored) {
                        forget_seen(v, kind, v->touched[kind][slot]);
                        v->touched[kind][slot] = 0;
                    }
                }
                slots[i] = 0;
            }
        }
    }
}

/* The recorder has asked for each access: nothing counts as touched any more. While the guest stands still. */
void notice_every_access(void)
{
    if (settings.control->every_access && !settings.every_access) {
        settings.every_access = true;
        for (unsigned i = 0; i < settings.vcpus; i++) {
            drop_caches(&vcpus[i]);
        }
        tlb_forget_all();
    }
}

/* The first-touch tables of every vCPU, and those of what has been seen. */
bool touches_open(void)
{
    clear_seen(&nothing_seen, TOUCH_LOAD, TOUCH_FETCH);
    for (unsigned i = 0; i < settings.vcpus; i++) {
        vcpus[i].seen = &nothing_seen;
        vcpus[i].seen_stale = true;
    }
    for (unsigned i = 0; i < settings.vcpus && settings.touch_entries; i++) {
        for (unsigned kind = 0; kind < TOUCH_KINDS; kind++) {
            vcpus[i].touched[kind] = calloc(settings.touch_entries, sizeof(uint64_t));
            vcpus[i].through[kind] = calloc(settings.touch_entries, sizeof(uint64_t));
            vcpus[i].slots[kind] = calloc(64ul * slot_words(), sizeof(uint64_t));
            if (!vcpus[i].touched[kind] || !vcpus[i].through[kind] || !vcpus[i].slots[kind]) {
                return false;
            }
        }
    }
    return true;
}
