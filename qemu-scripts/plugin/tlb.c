/*
 * Loads and stores seen through QEMU's own TLB, where it can be had: QEMU 7.2, one vCPU. No access calls us then.
 *
 * An access that hits in the TLB is a few instructions of compiled code. What is to be seen must miss: the entry's comparator
 * for that kind of access gets QEMU's bit for "ask each time", and what QEMU asks is replaced by ours. A first touch is told
 * once and the bit taken away; at a page that is a table it stays in the comparator for stores.
 *
 * A store is told before it is done, so what it stored is read when the next thing is told, which is soon enough: another store
 * to the page would be told. But a store that links a table makes a page a table whose stores must be told from the next on:
 * there the whole TLB is emptied, and the next access, whatever it is, is told.
 */
#include <string.h>

#include "tables.h"
#include "tlb.h"

/* A store that has been told of and is not read yet; two, where it crosses pages, of which the second is still to be told. */
static struct begun {
    uint64_t gpa, va, pc;
    unsigned size;
    bool user;
} begun[2];
static unsigned begun_count;

/* Larger ones QEMU makes of several. */
#define LARGEST_STORE 8u

/* Which instruction lies behind a place in compiled code: finding out takes longer than a store. */
#define ORIGINS 4093u
static struct origin {
    uintptr_t from;
    uint64_t offset; /* in its page */
} origins[ORIGINS];

/*
 * The last access that may be made in parts, each of which asks. QEMU stores byte by byte, upwards, what crosses pages, and what is
 * not aligned where anything is to be looked at; such a load it makes of the two aligned ones that it lies in.
 */
static struct whole {
    uintptr_t from;
    int access;
    uint64_t va;
    unsigned size;
    uint64_t next_byte;    /* no part of a store lies before it */
    unsigned halves_asked; /* of a load: a bit each */
} whole;

/* Where in RAM the page of an entry lies; UINT64_MAX: not there. */
static uint64_t gpa_of(const struct entry *entry, unsigned kind, uint64_t va)
{
    uint64_t gpa = va + entry->to_host - taken.host_ram;

    return entry->compared[kind] & IS_DEVICE || gpa >= frames * PAGE_BYTES ? UINT64_MAX : gpa;
}

static bool is_watched(uint64_t gpa)
{
    return gpa != UINT64_MAX && (tables_is_tracked(gpa) || holds_gate(gpa));
}

/* Whether an entry asks at every access there can be: QEMU, which drops a page by what it would hit, does not find it. */
static bool is_hidden(const struct entry *entry)
{
    for (unsigned kind = 0; kind < TOUCH_KINDS; kind++) {
        if (entry->compared[kind] != NEVER && !(entry->compared[kind] & ASK_EACH_TIME)) {
            return false;
        }
    }
    return true;
}

/*
 * QEMU does not mark an entry that asks when code is compiled from its page; so one that asks at stores is taken to be marked.
 * At the next store that does not ask QEMU finds out.
 */
static void set_asking(struct entry *entry, enum touch kind, bool ask)
{
    uint64_t *compared = &entry->compared[kind];

    if (!ask) {
        *compared &= ~(uint64_t)ASK_EACH_TIME;
    } else if (kind == TOUCH_STORE && !(*compared & (IS_DEVICE | IS_READ_ONLY))) {
        *compared |= ASK_EACH_TIME | MAY_HOLD_CODE;
    } else {
        *compared |= ASK_EACH_TIME;
    }
}

/* Have an entry ask for what is to be told. While something is pending it is not known what that will be. */
static void mark(struct entry *entry, int mode, uint64_t va)
{
    const struct vcpu *v = vcpus;
    bool touches = settings.touch_entries, user = is_user(mode);

    if (touches && holds(entry, TOUCH_LOAD, va)) {
        set_asking(entry, TOUCH_LOAD, v->pending || untouched(v, TOUCH_LOAD, va, user));
    }
    if (holds(entry, TOUCH_STORE, va)) {
        bool ask = v->pending || (touches && untouched(v, TOUCH_STORE, va, user)) || is_watched(gpa_of(entry, TOUCH_STORE, va));
        set_asking(entry, TOUCH_STORE, ask);
    }
}

static void have_ask(struct entry *entry, enum touch kind, uint64_t va)
{
    if (holds(entry, kind, va)) {
        set_asking(entry, kind, true);
    }
}

/* What was touched is to be told again at the next touch. */
void tlb_forget(enum touch kind, uint64_t va, bool user)
{
    for (int mode = 0; mode < taken.modes; mode++) {
        if (is_user(mode) == user) {
            have_ask(find(va, mode), kind, va);
            for (unsigned i = 0; i < VICTIMS; i++) {
                have_ask(&victims(mode)[i], kind, va);
            }
        }
    }
}

/* All of it, and on the vCPU's own thread at once: the next access is told. Nothing where callbacks tell. */
void tlb_forget_all(void)
{
    if (settings.by_tlb) {
        taken.flush(taken.cpu);
    }
}

/* With the lock held: an access, or what comes before the record of a store. */
static void tell_touch(enum touch kind, uint64_t va, bool user)
{
    if (untouched(vcpus, kind, va, user)) {
        note_touch(0, kind, va, user);
    }
}

static void tell_store(const struct begun *store)
{
    if (settings.touch_entries) {
        tell_touch(TOUCH_STORE, store->va, store->user);
    }
    if (tables_is_tracked(store->gpa)) {
        tell_table_store(0, store->gpa, store->va, store->user);
    }
}

/* With the lock held: what the last store stored is in memory now. */
void tlb_settle(void)
{
    unsigned count = begun_count;

    begun_count = 0;
    for (unsigned i = 0; i < count; i++) {
        if (i) {
            tell_store(&begun[i]);
        }
        if (tables_is_tracked(begun[i].gpa)) {
            tables_store(0, begun[i].gpa, begun[i].size, begun[i].pc);
        } else {
            stored_to_gate(begun[i].gpa);
        }
    }
}

/* The instruction that asks; rip where QEMU cannot say. */
static uint64_t asking_pc(uintptr_t from)
{
    struct origin *known = &origins[from % ORIGINS];
    uint64_t data[3];

    if (known->from != from) {
        if (!taken.unwind(taken.cpu, from, data)) {
            return qemu_7_2_linear_rip();
        }
        *known = (struct origin){from, data[0]};
    }
    return (qemu_7_2_linear_rip() & ~(uint64_t)(PAGE_BYTES - 1)) | known->offset;
}

/* QEMU has forgotten all compiled code, and will compile other code in its place. */
void tlb_forget_code(qemu_plugin_id_t id)
{
    (void)id;
    memset(origins, 0, sizeof origins);
    whole.from = 0;
}

/* With the lock held: a store is told as soon as it begins, its second part when the first has been recorded. */
static void begin_store(struct begun store, uintptr_t from)
{
    if (store.user && !settings.touch_entries && !settings.watch_user_stores) {
        return;
    }
    if (begun_count == 0) {
        tell_store(&store);
    }
    if (begun_count || is_watched(store.gpa)) {
        store.pc = asking_pc(from);
        begun[begun_count++] = store;
        if (tables_is_tracked(store.gpa) && tables_may_link(store.gpa)) {
            tlb_forget_all();
        }
    }
}

/* An access within a page, for which there is an entry. */
static void tell(uint64_t va, unsigned size, int access, int mode, uintptr_t from)
{
    bool user = is_user(mode);

    if (!from) {
        return; /* an exception's, on its way: what it pushes onto a table is found when the guest stands still */
    }
    pthread_mutex_lock(&lock);
    if (!closed && access == TOUCH_STORE) {
        uint64_t gpa = gpa_of(find(va, mode), TOUCH_STORE, va);
        begin_store((struct begun){.gpa = gpa, .va = va, .size = size, .user = user}, from);
    } else if (!closed && settings.touch_entries) {
        tell_touch((enum touch)access, va, user);
    }
    pthread_mutex_unlock(&lock);
}

static bool is_part_of_store(uint64_t va, unsigned size)
{
    uint64_t end = whole.va + whole.size;

    /* What lies in a second page: QEMU looks whether it is there before it stores anything. */
    if (size < whole.size && va == (end & ~(uint64_t)(PAGE_BYTES - 1)) && size == (end & (PAGE_BYTES - 1))) {
        return true;
    }
    if (size != 1 || va < whole.next_byte || va >= end) {
        return false;
    }
    whole.next_byte = va + 1;
    return true;
}

static bool is_part_of_load(uint64_t va, unsigned size)
{
    uint64_t lower = whole.va & -(uint64_t)whole.size;
    unsigned half = va == lower ? 1 : 2;

    if (whole.va == lower || size != whole.size || (va != lower && va != lower + size) || whole.halves_asked & half) {
        return false;
    }
    whole.halves_asked |= half;
    return true;
}

static bool is_part(uint64_t va, unsigned size, int access, uintptr_t from)
{
    if (!from || whole.from != from || whole.access != access) {
        return false;
    }
    return access == TOUCH_STORE ? is_part_of_store(va, size) : is_part_of_load(va, size);
}

/* Whether it may be the second part of a store whose first part asked for nothing: that begins where a page does. */
static bool may_be_second(uint64_t va, unsigned size, uintptr_t from)
{
    uint8_t code[16] = {0};
    uint64_t pc, through = 0;
    unsigned room;

    if (va & (PAGE_BYTES - 1) || size > 1) {
        return !(va & (PAGE_BYTES - 1));
    }
    pc = asking_pc(from);
    room = PAGE_BYTES - (unsigned)(pc & (PAGE_BYTES - 1));
    read_physical(translate(vcpus, pc, &through), code, room < sizeof code ? room : sizeof code);
    if (room < sizeof code) {
        read_physical(translate(vcpus, pc + room, &through), code + room, sizeof code - room);
    }
    return !stores_a_byte(code, sizeof code);
}

/* Where the first byte may lie that QEMU stores of an access that asks. */
static uint64_t first_byte(uint64_t va, unsigned size, int access, uintptr_t from)
{
    if (from && access == TOUCH_STORE && may_be_second(va, size, from)) {
        return va - (LARGEST_STORE - 1);
    }
    return va & (size - 1) ? va : va + size;
}

/*
 * Before an access is told: what came before it. The registers are as the pending instruction leaves them at the next one's accesses, not
 * at its own, nor at those of an exception that it makes: a task switch works on its TSS.
 */
static void catch_up_with(int access, uintptr_t from)
{
    struct vcpu *v = vcpus;
    bool resolves = v->pending && !settings.touch_entries && (access == TOUCH_FETCH || (from && asking_pc(from) != v->pending_pc));

    if (begun_count || resolves) {
        pthread_mutex_lock(&lock);
        if (!closed) {
            tlb_settle();
            if (resolves) {
                resolve(0);
            }
        }
        pthread_mutex_unlock(&lock);
    }
}

/* An entry for an access; false, or no return, where the guest has none. A hidden one may be of what QEMU has dropped since. */
static bool is_there(uint64_t va, unsigned size, int access, int mode, uintptr_t from)
{
    const struct entry *entry = find(va, mode);

    return (holds(entry, (unsigned)access, va) && !is_hidden(entry)) || taken.fill(taken.cpu, va, (int)size, access, mode, false, from);
}

static bool on_data(uint64_t va, unsigned size, int access, int mode, uintptr_t from)
{
    uint64_t next = (va | (PAGE_BYTES - 1)) + 1;
    unsigned room = (unsigned)(next - va), beyond = size > room ? size - room : 0;
    bool part = is_part(va, size, access, from);

    if (!part) {
        whole = (struct whole){from, access, va, size, first_byte(va, size, access, from), 0};
        catch_up_with(access, from);
    }
    if (!is_there(va, size, access, mode, from)) {
        return false;
    }
    if (beyond && !part) {
        /* Nothing of an access is told unless all of it can be done: a page that is missing ends this here, and it is made again. */
        mark(find(va, mode), mode, va);
        if (!is_there(next, beyond, access, mode, from)) {
            return false;
        }
    }
    if (!part) {
        tell(va, size - beyond, access, mode, from);
    }
    if (beyond && !part && is_there(next, beyond, access, mode, from)) {
        tell(next, beyond, access, mode, from);
        if (is_there(next, beyond, access, mode, from)) {
            mark(find(next, mode), mode, next);
        }
    }
    /* What was told may have emptied the TLB. */
    if (!is_there(va, size, access, mode, from)) {
        return false;
    }
    mark(find(va, mode), mode, va);
    return true;
}

static bool on_fill(void *cpu, uint64_t va, int size, int access, int mode, bool probe, uintptr_t from)
{
    bool filled;

    if (mode >= taken.modes) {
        return taken.fill(cpu, va, size, access, mode, probe, from);
    }
    if (access != TOUCH_FETCH && !probe && size > 0) {
        return on_data(va, (unsigned)size, access, mode, from);
    }
    catch_up_with(access, from);
    filled = taken.fill(cpu, va, size, access, mode, probe, from);
    if (filled) {
        mark(find(va, mode), mode, va);
    }
    return filled;
}

/* On the thread of the only vCPU, which is about to run a block; false where QEMU's TLB cannot be had. */
bool tlb_open(int ram_fd, uint64_t running)
{
    return take_over(ram_fd, running, on_fill);
}
