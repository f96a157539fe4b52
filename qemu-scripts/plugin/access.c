/*
 * Loads and stores by callbacks: every access of the guest calls here.
 *
 * What is pending is resolved at the next block, or, where blocks have no callback, at the next store - but never at those of
 * the pending instruction itself: a task switch works on its TSS, which still belongs to what was before.
 */
#include <string.h>

#include "vcpu.h"

#define LARGEST_ACCESS 64u
/* Of an instruction whose effect is known, and of an exception within it. */
#define LARGEST_PLAIN_ACCESS 8u

/* The bits of a callback's information that say it is a store: QEMU's function is a call for each access. */
static qemu_plugin_meminfo_t store_bits;

/* With the lock held, before a store to a table is recorded: what comes with it. */
void tell_table_store(unsigned vcpu, uint64_t gpa, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];

    notice_task_switch(vcpu);
    if (settings.invalidate_on_pt_write && v->store_touch != va) {
        /* Where the page is shadowed each store to it faults, not the first alone. */
        uint16_t flags = user ? ACCESS_WRITE | ACCESS_USER : ACCESS_WRITE;
        struct record event = {.kind = REC_ACCESS, .vcpu = (uint8_t)vcpu, .flags = flags, .addr = va};
        stream_event(&event, NULL, 0);
    }
    v->store_touch = NO_VA;
    note_stored_tables(table_bit(gpa));
}

/* A store, or what is one of it: at most 8 bytes, in one page. */
static void store_in_page(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, unsigned size, bool user, uint64_t pc)
{
    struct vcpu *v = &vcpus[vcpu];
    struct qemu_plugin_hwaddr *address = qemu_plugin_get_hwaddr(info, va);
    uint64_t gpa;

    if (!address || qemu_plugin_hwaddr_is_io(address)) {
        return;
    }
    gpa = qemu_plugin_hwaddr_phys_addr(address);
    if (!tables_is_tracked(gpa)) {
        if (holds_gate(gpa)) {
            stored_to_gate(gpa);
        } else {
            v->store_cache[(va >> PAGE_SHIFT) & (STORE_CACHE - 1)] = (va >> PAGE_SHIFT) + 1;
        }
        return;
    }
    tell_table_store(vcpu, gpa, va, user);
    tables_store(vcpu, gpa, size, qemu_running_pc(vcpu, pc));
}

/* Whose store it is: the kernel's where blocks have callbacks, or of a pending instruction; the kernel's where not; the user's. */
enum storer { KERNEL, BETWEEN, USER };

/* Near a page's end: whether an access reaches into the next. */
static bool leaves_page(qemu_plugin_meminfo_t info, uint64_t va)
{
    return (va & (PAGE_BYTES - 1)) + (1u << qemu_plugin_mem_size_shift(info)) > PAGE_BYTES;
}

static void store_part(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, unsigned size, enum storer storer, uint64_t pc)
{
    struct vcpu *v = &vcpus[vcpu];

    pthread_mutex_lock(&lock);
    if (!closed) {
        if (v->pending && storer == BETWEEN) {
            resolve(vcpu);
        }
        uint64_t generation = atomic_load(&tables_generation);
        if (v->cache_generation != generation) {
            memset(v->store_cache, 0, sizeof v->store_cache);
            v->cache_generation = generation;
        }
        v->generation = v->pending ? 0 : generation;
        store_in_page(vcpu, info, va, size, storer == USER, pc);
        if (atomic_load(&tables_generation) != generation) {
            memset(v->store_cache, 0, sizeof v->store_cache);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void store_of_8(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, unsigned size, enum storer storer, uint64_t pc)
{
    unsigned room = PAGE_BYTES - (unsigned)(va & (PAGE_BYTES - 1));

    store_part(vcpu, info, va, size < room ? size : room, storer, pc);
    if (size > room) {
        if (settings.touch_entries) {
            touch(vcpu, TOUCH_STORE, va + room, storer == USER);
        }
        store_part(vcpu, info, va + room, size - room, storer, pc);
    }
}

/*
 * A store of 16 bytes (cmpxchg16b, SSE) is two of 8: no hypervisor of that time emulated it as one, and QEMU before 8.0 makes
 * two of it. Each of them may cross pages.
 */
static RARE void store_slow(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, enum storer storer, uint64_t pc)
{
    unsigned size = 1u << qemu_plugin_mem_size_shift(info);

    if (!(info & store_bits)) {
        return; /* an exception within the instruction loads its gate */
    }
    for (unsigned at = 0; at < size; at += 8) {
        if (at && settings.touch_entries) {
            touch(vcpu, TOUCH_STORE, va + at, storer == USER);
        }
        store_of_8(vcpu, info, va + at, size - at < 8 ? size - at : 8, storer, pc);
    }
}

/* Whether a store may be one to a table, as far as its page tells: the cache does not know it, or is not up to date. */
static inline bool unknown_page(const struct vcpu *v, uint64_t va)
{
    uint64_t page = va >> PAGE_SHIFT;

    return v->store_cache[page & (STORE_CACHE - 1)] != page + 1 ||
           v->generation != atomic_load_explicit(&tables_generation, memory_order_acquire);
}

/* Whether so near to a page's end that only the access's size tells whether it stays within. */
static inline bool near_end(uint64_t va)
{
    return !(~va & (PAGE_BYTES - LARGEST_ACCESS));
}

static inline void store(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, enum storer storer, void *pc)
{
    if (unknown_page(&vcpus[vcpu], va) || (near_end(va) && leaves_page(info, va))) {
        store_slow(vcpu, info, va, storer, (uint64_t)(uintptr_t)pc);
    }
}

/* On the vCPU's thread, after an access: whether the next of its kind to this page says anything new. */
void remember(struct vcpu *v, enum touch kind, uint64_t va, bool user)
{
    if (settings.touch_entries && untouched(v, kind, va, user)) {
        return;
    }
    if (kind == TOUCH_STORE && (unknown_page(v, va) || v->generation != v->seen_generation)) {
        return;
    }
    own_seen(v)->page[user][va >> PAGE_SHIFT & (SEEN_SLOTS - 1)][kind] = va & ~(uint64_t)(PAGE_BYTES - 1);
}

/* ---- page tables only ---- */

/* The memory callbacks' last parameter is the address of the instruction, as it was translated. */
static RARE void plain_store_slow(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc)
{
    catch_up(&vcpus[vcpu]);
    store(vcpu, info, va, BETWEEN, pc);
    remember(&vcpus[vcpu], TOUCH_STORE, va, false);
}

static inline void on_plain_store(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc)
{
    if (!seen(vcpu, TOUCH_STORE, va, false, LARGEST_PLAIN_ACCESS)) {
        plain_store_slow(vcpu, info, va, pc);
    }
}

static inline void on_any_store(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc)
{
    /* QEMU 7.2 calls for loads too, whatever was asked. */
    if ((info & store_bits) && !seen(vcpu, TOUCH_STORE, va, false, LARGEST_ACCESS)) {
        plain_store_slow(vcpu, info, va, pc);
    }
}

/* A callback, and the same for a guest's only vCPU, whose fields' addresses are known when this is compiled. */
#define MEMORY_CALLBACK(name, access, ...) \
    static void name(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc) { access(vcpu, info, va, __VA_ARGS__); } \
    static void sole_##name(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc) \
    { \
        (void)vcpu; \
        access(0, info, va, __VA_ARGS__); \
    }

MEMORY_CALLBACK(plain_store, on_plain_store, pc)
MEMORY_CALLBACK(any_store, on_any_store, pc)

/* What to call at the stores of an instruction; NULL: nothing. */
mem_cb store_callback(enum effect effect)
{
    static const mem_cb callbacks[2][3] = {
        {[EFFECT_STORES] = plain_store, [EFFECT_ANY] = any_store},
        {[EFFECT_STORES] = sole_plain_store, [EFFECT_ANY] = sole_any_store},
    };

    return callbacks[settings.vcpus == 1][effect];
}

/* A store of an instruction that is itself pending. */
void on_own_store(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc)
{
    if (info & store_bits) {
        store(vcpu, info, va, KERNEL, pc);
    }
}

/* ---- with touches ---- */

static inline void memory_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, bool user, void *pc)
{
    bool is_store = info & store_bits;
    enum touch kind = is_store ? TOUCH_STORE : TOUCH_LOAD;

    catch_up(&vcpus[vcpu]);
    touch(vcpu, kind, va, user);
    if (is_store) {
        store(vcpu, info, va, user ? USER : KERNEL, pc); /* it touches the next page where it reaches that */
    } else if (near_end(va) && leaves_page(info, va)) {
        touch(vcpu, kind, (va | (PAGE_BYTES - 1)) + 1, user);
    }
    remember(&vcpus[vcpu], kind, va, user);
}

static RARE void kernel_access_slow(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc)
{
    memory_access(vcpu, info, va, false, pc);
}

static RARE void user_access_slow(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc)
{
    memory_access(vcpu, info, va, true, pc);
}

/* An instruction that is told to load or to store may do the other as well: where an exception within it does. */
static inline void on_load(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, bool user, unsigned bytes, void *pc)
{
    if (!seen(vcpu, TOUCH_LOAD, va, user, bytes) || (info & store_bits)) {
        (user ? user_access_slow : kernel_access_slow)(vcpu, info, va, pc);
    }
}

static inline void on_store(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, bool user, unsigned bytes, void *pc)
{
    if (!seen(vcpu, TOUCH_STORE, va, user, bytes) || !(info & store_bits)) {
        (user ? user_access_slow : kernel_access_slow)(vcpu, info, va, pc);
    }
}

static inline void on_either(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, bool user, unsigned bytes, void *pc)
{
    if (info & store_bits) {
        on_store(vcpu, info, va, user, bytes, pc);
    } else {
        on_load(vcpu, info, va, user, bytes, pc);
    }
}

MEMORY_CALLBACK(kernel_load, on_load, false, LARGEST_PLAIN_ACCESS, pc)
MEMORY_CALLBACK(kernel_store, on_store, false, LARGEST_PLAIN_ACCESS, pc)
MEMORY_CALLBACK(kernel_access, on_either, false, LARGEST_ACCESS, pc)
MEMORY_CALLBACK(user_load, on_load, true, LARGEST_PLAIN_ACCESS, pc)
MEMORY_CALLBACK(user_store, on_store, true, LARGEST_PLAIN_ACCESS, pc)
MEMORY_CALLBACK(user_access, on_either, true, LARGEST_ACCESS, pc)

/* What to call at the accesses of an instruction. */
mem_cb access_callback(bool user, enum effect effect)
{
    static const mem_cb callbacks[2][2][3] = {
        {{[EFFECT_LOADS] = kernel_load, [EFFECT_STORES] = kernel_store, [EFFECT_ANY] = kernel_access},
         {[EFFECT_LOADS] = user_load, [EFFECT_STORES] = user_store, [EFFECT_ANY] = user_access}},
        {{[EFFECT_LOADS] = sole_kernel_load, [EFFECT_STORES] = sole_kernel_store, [EFFECT_ANY] = sole_kernel_access},
         {[EFFECT_LOADS] = sole_user_load, [EFFECT_STORES] = sole_user_store, [EFFECT_ANY] = sole_user_access}},
    };

    return callbacks[settings.vcpus == 1][user][effect];
}

/* To be called before the first block is translated. */
void access_open(void)
{
    for (unsigned bit = 0; bit < 32; bit++) {
        store_bits |= qemu_plugin_mem_is_store(1u << bit) ? 1u << bit : 0;
    }
}
