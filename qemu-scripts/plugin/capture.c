/*
 * The callbacks: what the guest does, seen as it runs.
 *
 * What an instruction does to a control register can be read once it is done: it is marked pending and resolved at the
 * start of the vCPU's next block, which always comes before that block's loads and stores. Memory callbacks never resolve:
 * those of the pending instruction itself (a task switch works on its TSS) still belong to what was before.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shadowtrace.h"

enum pending { PENDING_MODE = 1, PENDING_CR3 = 2, PENDING_INVLPG = 4 };
enum touch { TOUCH_LOAD, TOUCH_STORE, TOUCH_FETCH, TOUCH_KINDS };
enum { ACCESS_WRITE = 1, ACCESS_USER = 2, ACCESS_FETCH = 4, ACCESS_FAULT = 8 };

/* A block's start address travels in a callback's data: bits 0..56, sign-extended, and two flags above. */
#define BLOCK_USER (1ull << 63)
#define BLOCK_CROSSES (1ull << 62)
#define BLOCK_VA_BITS 57

#define LARGEST_ACCESS 64u
#define NO_VA UINT64_MAX

struct vcpu {
    uint64_t store_cache[STORE_CACHE]; /* virtual page + 1 that is known not to be a table */
    uint64_t generation;
    uint64_t *touched[TOUCH_KINDS]; /* virtual page << 1 | user, + 1 */
    uint64_t *through[TOUCH_KINDS]; /* for each, the set of tables that its translation went through: table_bit()s */
    uint64_t store_touch;           /* the store touch recorded last, or NO_VA */
    _Atomic uint64_t stored_tables; /* tables that were stored to since the touches were last looked through */
    unsigned pending;
    struct operand invlpg;
    bool known; /* registers have been recorded once */
    uint64_t cr0, cr3, cr4, efer;
    struct table *roots[4];
    bool idt_known;
    uint64_t idt_va, gdt_va;
    uint64_t gate_gpa;              /* where gate 14 lies; 0: nowhere */
    _Atomic uint64_t fault_handler; /* gate 14's target; 0: none */
};

/* What a page fault's error code may say: P, W, U, RSVD, I, PK, SS, and SGX. */
#define PF_ERROR_BITS 0x807fu

static struct vcpu vcpus[MAX_VCPUS];
static unsigned vcpu_count, touch_entries;
static bool watch_user_stores;
static const volatile struct control *control;
static bool closed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool drop_at_stores;

static void drop_caches(struct vcpu *v)
{
    memset(v->store_cache, 0, sizeof v->store_cache);
    for (unsigned kind = 0; touch_entries && kind < TOUCH_KINDS; kind++) {
        memset(v->touched[kind], 0, touch_entries * sizeof **v->touched);
    }
}

/* INVLPG drops one page's translation; a slot may hold another page, which stays. */
static void forget_touch(struct vcpu *v, uint64_t page)
{
    for (unsigned kind = 0; touch_entries && kind < TOUCH_KINDS; kind++) {
        uint64_t *entry = &v->touched[kind][page & (touch_entries - 1)];
        if (*entry && (*entry - 1) >> 1 == page) {
            *entry = 0;
        }
    }
}

/* ---- control registers ---- */

static enum table_kind root_kind(const struct vcpu *v)
{
    if (v->efer & EFER_LMA) {
        return v->cr4 & CR4_LA57 ? T64_L5 : T64_L4;
    }
    return v->cr4 & CR4_PAE ? T64_L2 : T32_L2;
}

static bool is_pae(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

/* Track the tables of the registers as they are now; the contents that are new go into the stream. */
static void load_roots(unsigned vcpu, const uint64_t pdptes[4])
{
    struct vcpu *v = &vcpus[vcpu];
    struct table *roots[4] = {NULL};

    if (v->cr0 & CR0_PG) {
        if (is_pae(v->cr0, v->cr4, v->efer)) {
            for (unsigned i = 0; i < 4; i++) {
                if (pdptes[i] & PTE_PRESENT) {
                    roots[i] = tables_load_root(vcpu, (pdptes[i] & BASE64) >> PAGE_SHIFT, T64_L2);
                }
            }
        } else {
            uint64_t base = v->efer & EFER_LMA ? BASE64 : BASE32;
            roots[0] = tables_load_root(vcpu, (v->cr3 & base) >> PAGE_SHIFT, root_kind(v));
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        if (v->roots[i]) {
            tables_unload_root(v->roots[i]);
        }
        v->roots[i] = roots[i];
    }
}

static void record_cr3(unsigned vcpu, uint64_t cr3)
{
    struct vcpu *v = &vcpus[vcpu];
    struct record event = {.kind = REC_CR3, .vcpu = (uint8_t)vcpu, .addr = cr3};
    struct record sides[2] = {{.kind = REC_PDPTES, .vcpu = (uint8_t)vcpu}, {.kind = REC_PDPTES, .vcpu = (uint8_t)vcpu}};
    uint64_t pdptes[4] = {0};

    v->cr3 = cr3;
    if (is_pae(v->cr0, v->cr4, v->efer)) {
        tables_read(cr3 & 0xffffffe0u, pdptes, sizeof pdptes);
        event.flags = 1;
        sides[0].addr = pdptes[0];
        sides[0].value = pdptes[1];
        sides[1].addr = pdptes[2];
        sides[1].value = pdptes[3];
    }
    load_roots(vcpu, pdptes);
    stream_event(&event, sides, event.flags ? 2 : 0);
}

static void record_mode(unsigned vcpu, uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    struct vcpu *v = &vcpus[vcpu];
    bool was_pae = is_pae(v->cr0, v->cr4, v->efer);
    struct record event = {.kind = REC_REGS, .vcpu = (uint8_t)vcpu, .addr = cr0, .value = cr4};
    struct record side = {.kind = REC_EFER, .vcpu = (uint8_t)vcpu, .addr = efer};
    uint64_t pdptes[4] = {0};

    v->cr0 = cr0;
    v->cr4 = cr4;
    v->efer = efer;
    tables_set_pse(vcpu, cr4 & CR4_PSE);
    if (is_pae(cr0, cr4, efer)) {
        tables_read(v->cr3 & 0xffffffe0u, pdptes, sizeof pdptes);
        if (!was_pae) {
            /* The processor reads the four entries now, as at a cr3 load: whoever replays has to find them in memory. */
            tables_content(vcpu, (v->cr3 & 0xffffffffu) >> PAGE_SHIFT);
        }
    }
    load_roots(vcpu, pdptes);
    stream_event(&event, &side, 1);
}

static void look_up_handler(struct vcpu *v);
static uint64_t translate(const struct vcpu *v, uint64_t va, uint64_t *through);

/* Whether the code that runs is 64-bit code, and no 32-bit code in long mode: the L bit of CS's descriptor. */
static bool runs_64_bit_code(unsigned vcpu)
{
    struct vcpu *v = &vcpus[vcpu];
    uint64_t descriptor = 0, where, through = 0;

    if (!(v->efer & EFER_LMA)) {
        return false;
    }
    where = translate(v, v->gdt_va + (qemu_reg(vcpu, REG_CS) & 0xfff8), &through);
    if (where) {
        tables_read(where, &descriptor, sizeof descriptor);
    }
    return descriptor >> 53 & 1;
}

static void record_invlpg(unsigned vcpu)
{
    struct vcpu *v = &vcpus[vcpu];
    const struct operand *operand = &v->invlpg;
    uint64_t va = (uint64_t)operand->displacement;
    bool flat64 = runs_64_bit_code(vcpu);

    if (operand->base >= 0) {
        va += qemu_reg(vcpu, (enum reg)operand->base);
    } else if (operand->base == -2 && flat64) {
        va += operand->next_va;
    }
    if (operand->index >= 0) {
        va += qemu_reg(vcpu, (enum reg)operand->index) << operand->scale_shift;
    }
    if (operand->address32) {
        va &= 0xffffffffu;
    }
    if (operand->segment >= 0) {
        va += qemu_reg(vcpu, operand->segment == 4 ? REG_FS_BASE : REG_GS_BASE);
    }
    if (!flat64) {
        va &= 0xffffffffu;
    }
    struct record event = {.kind = REC_INVLPG, .vcpu = (uint8_t)vcpu, .addr = va};
    stream_event(&event, NULL, 0);
    forget_touch(v, va >> PAGE_SHIFT);
    memset(v->store_cache, 0, sizeof v->store_cache);
}

/* gdb numbers general registers rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp; instructions number them rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi. */
static int8_t gdb_number(int8_t encoded)
{
    static const int8_t order[] = {0, 2, 3, 1, 7, 6, 4, 5};

    return encoded >= 0 && encoded < 8 ? order[encoded] : encoded;
}

/* Record what pending instructions did. With the lock held, on a vCPU that is between blocks. */
static void resolve(unsigned vcpu)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned pending = v->pending;
    uint64_t cr0, cr3, cr4, efer;
    bool mode, load;

    v->pending = 0;
    if (pending & PENDING_INVLPG) {
        record_invlpg(vcpu);
    }
    if (!(pending & (PENDING_MODE | PENDING_CR3)) && v->known) {
        return;
    }
    cr0 = qemu_reg(vcpu, REG_CR0);
    cr3 = qemu_reg(vcpu, REG_CR3);
    cr4 = qemu_reg(vcpu, REG_CR4);
    efer = qemu_reg(vcpu, REG_EFER);
    /* CR0.TS comes and goes with the FPU and concerns no table. */
    mode = !v->known || ((cr0 ^ v->cr0) & ~CR0_TS) || cr4 != v->cr4 || efer != v->efer;
    load = (pending & PENDING_CR3) || cr3 != v->cr3;
    if (!mode && !load) {
        return;
    }
    v->known = true;
    if (load && !(v->cr0 & CR0_PG)) {
        record_cr3(vcpu, cr3);
        load = false;
    }
    if (mode) {
        record_mode(vcpu, cr0, cr4, efer);
    }
    if (load) {
        record_cr3(vcpu, cr3);
    }
    drop_caches(v);
    look_up_handler(v);
}

/* A task gate that an exception goes through loads cr3 with nothing to see: look before a store to a table is recorded. */
static void notice_cr3(unsigned vcpu)
{
    if (qemu_reg(vcpu, REG_CR3) != vcpus[vcpu].cr3) {
        vcpus[vcpu].pending |= PENDING_MODE;
        resolve(vcpu);
    }
}

/* ---- page faults ---- */

static uint64_t physical_entry(uint64_t gpa, unsigned bytes)
{
    uint64_t entry = 0;

    tables_read(gpa, &entry, bytes);
    return entry;
}

/* A set of tables in 64 bits: a table may share its bit with others, then more is dropped than need be. */
static uint64_t table_bit(uint64_t gpa)
{
    return 1ull << ((gpa >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 58);
}

/* Where a virtual address lies, by the tables as they are, which go into `through`; 0 where nothing maps it. */
static uint64_t translate(const struct vcpu *v, uint64_t va, uint64_t *through)
{
    bool two_level = !(v->cr4 & CR4_PAE);
    unsigned bytes = two_level ? 4 : 8, bits = two_level ? 10 : 9, level;
    uint64_t base = two_level ? BASE32 : BASE64, table = v->cr3 & base, entry;

    if (!(v->cr0 & CR0_PG)) {
        return va;
    }
    level = v->efer & EFER_LMA ? (v->cr4 & CR4_LA57 ? 5 : 4) : 2;
    if (level == 2 && !two_level) {
        entry = physical_entry((v->cr3 & 0xffffffe0u) + (va >> 30 & 3) * 8, 8);
        if (!(entry & PTE_PRESENT)) {
            return 0;
        }
        table = entry & base;
    }
    for (;; level--) {
        unsigned shift = PAGE_SHIFT + (level - 1) * bits;
        *through |= table_bit(table);
        entry = physical_entry(table + (va >> shift & ((1u << bits) - 1)) * bytes, bytes);
        if (!(entry & PTE_PRESENT)) {
            return 0;
        }
        bool big = level > 1 && level <= 3 && (entry & PTE_PS) && (!two_level || (v->cr4 & CR4_PSE));
        if (level == 1 || big) {
            uint64_t mask = (1ull << shift) - 1;
            return (entry & base & ~mask) | (va & mask);
        }
        table = entry & base;
    }
}

/*
 * Gate 14's target, as the descriptor table says now. Linux fills its table before and after it loads it, so this is asked
 * again at lidt, at each change of a control register, at each store to the gate's page and at each translation of a block.
 */
static void look_up_handler(struct vcpu *v)
{
    bool wide = v->efer & EFER_LMA;
    unsigned bytes = wide ? 16 : 8;
    uint8_t gate[16] = {0};
    uint64_t handler = 0, through = 0;

    v->gate_gpa = v->idt_known && (v->cr0 & CR0_PG) ? translate(v, v->idt_va + 14 * bytes, &through) : 0;
    if (v->gate_gpa) {
        tables_read(v->gate_gpa, gate, bytes);
    }
    if (gate[5] & 0x80) {
        handler = (uint64_t)gate[0] | (uint64_t)gate[1] << 8 | (uint64_t)gate[6] << 16 | (uint64_t)gate[7] << 24;
        if (wide) {
            uint32_t high;
            memcpy(&high, gate + 8, 4);
            handler |= (uint64_t)high << 32;
        }
    }
    atomic_store_explicit(&v->fault_handler, handler, memory_order_relaxed);
}

/* Whether a page holds some vCPU's gate 14; with the store done, their handlers are looked up again. */
static bool stored_to_gate(uint64_t gpa)
{
    bool found = false;

    for (unsigned i = 0; i < vcpu_count; i++) {
        if (vcpus[i].gate_gpa && vcpus[i].gate_gpa >> PAGE_SHIFT == gpa >> PAGE_SHIFT) {
            look_up_handler(&vcpus[i]);
            found = true;
        }
    }
    return found;
}

/* At the fault handler's first instruction: the access that faulted, from cr2 and the error code on top of the stack. */
static void record_fault(unsigned vcpu)
{
    struct vcpu *v = &vcpus[vcpu];
    uint64_t stack = qemu_reg(vcpu, REG_RSP), where, through = 0;
    uint32_t error;
    uint16_t flags = ACCESS_FAULT;

    if (!(v->efer & EFER_LMA)) {
        stack &= 0xffffffffu;
    }
    where = translate(v, stack, &through);
    error = where ? (uint32_t)physical_entry(where, 4) : 0;
    if (error & ~PF_ERROR_BITS) {
        return; /* not pushed by a page fault: a handler that other vectors share */
    }
    flags |= error & 2 ? ACCESS_WRITE : 0;
    flags |= error & 4 ? ACCESS_USER : 0;
    flags |= error & 16 ? ACCESS_FETCH : 0;
    struct record event = {.kind = REC_ACCESS, .vcpu = (uint8_t)vcpu, .flags = flags, .addr = qemu_reg(vcpu, REG_CR2)};
    stream_event(&event, NULL, 0);
}

/* ---- touches and stores ---- */

static void touch_slow(unsigned vcpu, enum touch kind, uint64_t va, bool user, uint64_t tag)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned slot = (va >> PAGE_SHIFT) & (touch_entries - 1);
    static const uint16_t kind_flags[] = {0, ACCESS_WRITE, ACCESS_FETCH};
    uint16_t flags = (uint16_t)(kind_flags[kind] | (user ? ACCESS_USER : 0));
    struct record event = {.kind = REC_ACCESS, .vcpu = (uint8_t)vcpu, .flags = flags, .addr = va};

    pthread_mutex_lock(&lock);
    if (!closed) {
        stream_event(&event, NULL, 0);
        v->store_touch = kind == TOUCH_STORE ? va : NO_VA;
        v->touched[kind][slot] = tag;
        v->through[kind][slot] = 0;
        if (drop_at_stores) {
            translate(v, va, &v->through[kind][slot]);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* A store to a table may make a model zap what went through it: touches that did are touches no more. */
static void drop_touches(struct vcpu *v)
{
    uint64_t stored = atomic_exchange(&v->stored_tables, 0);

    for (unsigned kind = 0; kind < TOUCH_KINDS; kind++) {
        for (unsigned i = 0; i < touch_entries; i++) {
            v->touched[kind][i] = v->through[kind][i] & stored ? 0 : v->touched[kind][i];
        }
    }
}

static inline void touch(unsigned vcpu, enum touch kind, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];
    uint64_t page = va >> PAGE_SHIFT, tag = (page << 1 | user) + 1;

    if (atomic_load_explicit(&v->stored_tables, memory_order_relaxed)) {
        drop_touches(v);
    }
    if (v->touched[kind][page & (touch_entries - 1)] != tag || control->every_access) {
        touch_slow(vcpu, kind, va, user, tag);
    }
}

/* The part of a store that lies in one page. */
static void store_in_page(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, unsigned size, bool user)
{
    struct vcpu *v = &vcpus[vcpu];
    struct qemu_plugin_hwaddr *address = qemu_plugin_get_hwaddr(info, va);
    uint64_t gpa;

    if (!address || qemu_plugin_hwaddr_is_io(address)) {
        return;
    }
    gpa = qemu_plugin_hwaddr_phys_addr(address);
    if (!tables_is_tracked(gpa)) {
        if (!stored_to_gate(gpa)) {
            v->store_cache[(va >> PAGE_SHIFT) & (STORE_CACHE - 1)] = (va >> PAGE_SHIFT) + 1;
        }
        return;
    }
    notice_cr3(vcpu);
    if (drop_at_stores && v->store_touch != va) {
        /* Where the page is shadowed each store to it faults, not the first alone. */
        uint16_t flags = user ? ACCESS_WRITE | ACCESS_USER : ACCESS_WRITE;
        struct record event = {.kind = REC_ACCESS, .vcpu = (uint8_t)vcpu, .flags = flags, .addr = va};
        stream_event(&event, NULL, 0);
    }
    v->store_touch = NO_VA;
    /* A store of 16 bytes (cmpxchg16b, SSE) is two of 8: no hypervisor of that time emulated it as one. */
    for (unsigned at = 0; at < size; at += 8) {
        if (tables_is_tracked(gpa)) {
            tables_store(vcpu, gpa + at, size - at < 8 ? size - at : 8);
        }
    }
    for (unsigned i = 0; drop_at_stores && i < vcpu_count; i++) {
        atomic_fetch_or(&vcpus[i].stored_tables, table_bit(gpa));
    }
}

static void store_slow(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, unsigned size, bool user)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned room = PAGE_BYTES - (unsigned)(va & (PAGE_BYTES - 1));

    pthread_mutex_lock(&lock);
    if (!closed) {
        uint64_t generation = atomic_load(&tables_generation);
        if (v->generation != generation) {
            memset(v->store_cache, 0, sizeof v->store_cache);
            v->generation = generation;
        }
        store_in_page(vcpu, info, va, size < room ? size : room, user);
        if (size > room) {
            store_in_page(vcpu, info, va + room, size - room, user);
        }
        if (atomic_load(&tables_generation) != generation) {
            memset(v->store_cache, 0, sizeof v->store_cache);
        }
    }
    pthread_mutex_unlock(&lock);
}

static inline void store(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned size = 1u << qemu_plugin_mem_size_shift(info);
    uint64_t page = va >> PAGE_SHIFT;

    if (v->store_cache[page & (STORE_CACHE - 1)] == page + 1 && (va & (PAGE_BYTES - 1)) + size <= PAGE_BYTES &&
        v->generation == atomic_load_explicit(&tables_generation, memory_order_acquire)) {
        return;
    }
    store_slow(vcpu, info, va, size, user);
}

static void on_store_only(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *data)
{
    (void)data;
    /* QEMU 7.2 calls for loads too, whatever was asked. */
    if (qemu_plugin_mem_is_store(info)) {
        store(vcpu, info, va, false);
    }
}

static inline void memory_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, bool user)
{
    bool is_store = qemu_plugin_mem_is_store(info);
    enum touch kind = is_store ? TOUCH_STORE : TOUCH_LOAD;

    touch(vcpu, kind, va, user);
    if ((va & (PAGE_BYTES - 1)) > PAGE_BYTES - LARGEST_ACCESS) {
        uint64_t last = va + (1u << qemu_plugin_mem_size_shift(info)) - 1;
        if (last >> PAGE_SHIFT != va >> PAGE_SHIFT) {
            touch(vcpu, kind, last & ~(uint64_t)(PAGE_BYTES - 1), user);
        }
    }
    if (is_store) {
        store(vcpu, info, va, user);
    }
}

static void on_kernel_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *data)
{
    (void)data;
    memory_access(vcpu, info, va, false);
}

static void on_user_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *data)
{
    (void)data;
    memory_access(vcpu, info, va, true);
}

/* lidt and lgdt load their operand in two parts: the limit, then at + 2 the base. `data`: not null for lgdt. */
static void on_table_register(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *data)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned shift = qemu_plugin_mem_size_shift(info);
    struct qemu_plugin_hwaddr *address = shift >= 2 ? qemu_plugin_get_hwaddr(info, va) : NULL;

    if (address && !qemu_plugin_hwaddr_is_io(address)) {
        pthread_mutex_lock(&lock);
        uint64_t base = physical_entry(qemu_plugin_hwaddr_phys_addr(address), 1u << shift);
        if (data) {
            v->gdt_va = base;
        } else {
            v->idt_va = base;
            v->idt_known = true;
            look_up_handler(v);
            /* The gate's page may stand in some vCPU's cache of pages to which stores do not matter. */
            atomic_fetch_add(&tables_generation, 1);
        }
        pthread_mutex_unlock(&lock);
    }
}

/* ---- blocks and instructions ---- */

static void on_block_slow(unsigned vcpu, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];

    pthread_mutex_lock(&lock);
    if (!closed) {
        resolve(vcpu);
        if (touch_entries && !user && va == v->fault_handler) {
            record_fault(vcpu);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void on_block(unsigned vcpu, void *data)
{
    struct vcpu *v = &vcpus[vcpu];
    uint64_t packed = (uint64_t)(uintptr_t)data;
    uint64_t va = (uint64_t)((int64_t)(packed << (64 - BLOCK_VA_BITS)) >> (64 - BLOCK_VA_BITS));
    bool user = packed & BLOCK_USER;

    if (v->pending || va == atomic_load_explicit(&v->fault_handler, memory_order_relaxed) || !v->known) {
        on_block_slow(vcpu, va, user);
    }
    touch(vcpu, TOUCH_FETCH, va, user);
    if (packed & BLOCK_CROSSES) {
        touch(vcpu, TOUCH_FETCH, (va | (PAGE_BYTES - 1)) + 1, user);
    }
}

/* Page tables only: nothing but what is pending. */
static void on_kernel_block(unsigned vcpu, void *data)
{
    (void)data;
    if (vcpus[vcpu].pending || !vcpus[vcpu].known) {
        on_block_slow(vcpu, 0, true);
    }
}

static void on_mode_write(unsigned vcpu, void *data)
{
    (void)data;
    vcpus[vcpu].pending |= PENDING_MODE;
}

static void on_cr3_write(unsigned vcpu, void *data)
{
    (void)data;
    vcpus[vcpu].pending |= PENDING_CR3;
}

/* It may switch tasks, into a new cr3 - or follow a switch that an exception made unseen. */
static void on_far_transfer(unsigned vcpu, void *data)
{
    (void)data;
    if (vcpus[vcpu].known && qemu_reg(vcpu, REG_CR3) != vcpus[vcpu].cr3) {
        pthread_mutex_lock(&lock);
        if (!closed) {
            notice_cr3(vcpu);
        }
        pthread_mutex_unlock(&lock);
    }
    vcpus[vcpu].pending |= PENDING_MODE;
}

static void on_invlpg(unsigned vcpu, void *data)
{
    vcpus[vcpu].invlpg = *(const struct operand *)data;
    vcpus[vcpu].pending |= PENDING_INVLPG;
}

static void on_read_cr2(unsigned vcpu, void *data)
{
    (void)vcpu;
    (void)data;
    atomic_fetch_add((_Atomic uint64_t *)&stream_control()->page_faults, 1);
}

static void instrument_special(struct qemu_plugin_insn *insn, enum insn_kind kind, const struct operand *operand)
{
    struct operand *kept;

    switch (kind) {
    case INSN_CR3:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_cr3_write, CB_R_REGS, NULL);
        break;
    case INSN_MODE:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mode_write, CB_R_REGS, NULL);
        break;
    case INSN_FAR:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_far_transfer, CB_NO_REGS, NULL);
        break;
    case INSN_INVLPG:
        /* Lives as long as the block may: QEMU does not say when it forgets one. */
        kept = malloc(sizeof *kept);
        if (kept) {
            *kept = *operand;
            kept->base = gdb_number(operand->base);
            kept->index = gdb_number(operand->index);
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_invlpg, CB_R_REGS, kept);
        }
        break;
    case INSN_LIDT:
    case INSN_LGDT:
        qemu_plugin_register_vcpu_mem_cb(insn, on_table_register, CB_NO_REGS, MEM_RW, kind == INSN_LGDT ? vcpus : NULL);
        break;
    case INSN_READ_CR2:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_read_cr2, CB_NO_REGS, NULL);
        break;
    case INSN_PLAIN:
        break;
    }
}

/* Whether the block being translated is user code; unknown counts as kernel code, which is watched more closely. */
static bool translating_user_code(int vcpu)
{
    if (vcpu < 0 || !(qemu_reg((unsigned)vcpu, REG_CR0) & CR0_PE)) {
        return false;
    }
    return (qemu_reg((unsigned)vcpu, REG_CS) & 3) == 3 || (qemu_reg((unsigned)vcpu, REG_EFLAGS) & EFLAGS_VM);
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    int vcpu = qemu_translating_vcpu();
    bool user = translating_user_code(vcpu);
    size_t count = qemu_plugin_tb_n_insns(tb);
    uint64_t start = qemu_plugin_tb_vaddr(tb), next = start;
    uint8_t bytes[16];
    struct operand operand;

    (void)id;
    if (vcpu >= 0 && !user && touch_entries) {
        pthread_mutex_lock(&lock);
        look_up_handler(&vcpus[vcpu]);
        pthread_mutex_unlock(&lock);
    }
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t va = qemu_plugin_insn_vaddr(insn);
        size_t size = qemu_insn_bytes(insn, bytes, sizeof bytes);
        enum insn_kind kind = decode(bytes, size, va, &operand);

        next = va + size;
        /* In user code the others only fault. */
        if (!user || kind == INSN_FAR) {
            instrument_special(insn, kind, &operand);
        }
        if (touch_entries) {
            qemu_plugin_register_vcpu_mem_cb(insn, user ? on_user_access : on_kernel_access, CB_NO_REGS, MEM_RW, NULL);
        } else if (!user || watch_user_stores) {
            qemu_plugin_register_vcpu_mem_cb(insn, on_store_only, CB_NO_REGS, MEM_RW, NULL);
        }
    }
    if (touch_entries) {
        uint64_t packed = start & ((1ull << BLOCK_VA_BITS) - 1);
        packed |= user ? BLOCK_USER : 0;
        packed |= (next - 1) >> PAGE_SHIFT != start >> PAGE_SHIFT ? BLOCK_CROSSES : 0;
        qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, CB_R_REGS, (void *)(uintptr_t)packed);
    } else if (!user) {
        qemu_plugin_register_vcpu_tb_exec_cb(tb, on_kernel_block, CB_R_REGS, NULL);
    }
}

/* ---- life cycle ---- */

/* With the lock held: whatever can be known is put into the pipe. A vCPU's own thread may ask for itself alone. */
static void settle(void)
{
    int own = qemu_translating_vcpu();

    for (unsigned i = 0; i < vcpu_count; i++) {
        if ((own < 0 || (unsigned)own == i) && vcpus[i].known && vcpus[i].pending) {
            resolve(i);
        }
    }
    stream_flush();
}

static void on_stopped(void)
{
    pthread_mutex_lock(&lock);
    if (!closed) {
        settle();
    }
    pthread_mutex_unlock(&lock);
}

static void on_exit_qemu(qemu_plugin_id_t id, void *data)
{
    (void)id;
    (void)data;
    pthread_mutex_lock(&lock);
    if (!closed) {
        settle();
        closed = true;
        stream_close();
    }
    pthread_mutex_unlock(&lock);
}

/* What a quiet guest did must not wait in the buffer until it does more. */
static void *flush_now_and_then(void *data)
{
    const struct timespec pause = {.tv_nsec = 200 * 1000 * 1000};

    (void)data;
    for (bool done = false; !done;) {
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&lock);
        done = closed;
        if (!done) {
            stream_flush();
        }
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static long argument(int argc, char **argv, const char *name, long otherwise)
{
    size_t length = strlen(name);

    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], name, length) == 0 && argv[i][length] == '=') {
            return strtol(argv[i] + length + 1, NULL, 0);
        }
    }
    return otherwise;
}

static int refuse(const char *why)
{
    fprintf(stderr, "shadowtrace plugin: %s\n", why);
    return 1;
}

/* Arguments: stream, control, ram: inherited descriptors; ram_bytes; linger, touch, drop_at_stores, max_tables, user_stores. */
__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    extern int qemu_plugin_version;
    pthread_t flusher;

    if (!info->system_emulation || strcmp(info->target_name, "x86_64") != 0) {
        return refuse("it needs qemu-system-x86_64");
    }
    if (!qemu_open()) {
        return refuse("this QEMU neither exports its register functions nor has the plugin API's (9.0 and later)");
    }
    vcpu_count = (unsigned)info->system.max_vcpus;
    touch_entries = (unsigned)argument(argc, argv, "touch", 1024);
    drop_at_stores = touch_entries && argument(argc, argv, "drop_at_stores", 1);
    watch_user_stores = argument(argc, argv, "user_stores", 0);
    if (vcpu_count > MAX_VCPUS || touch_entries > MAX_TOUCH || (touch_entries & (touch_entries - 1))) {
        return refuse("bad number of vCPUs or of first-touch entries");
    }
    for (unsigned i = 0; i < vcpu_count && touch_entries; i++) {
        for (unsigned kind = 0; kind < TOUCH_KINDS; kind++) {
            vcpus[i].touched[kind] = calloc(touch_entries, sizeof(uint64_t));
            vcpus[i].through[kind] = calloc(touch_entries, sizeof(uint64_t));
            if (!vcpus[i].touched[kind] || !vcpus[i].through[kind]) {
                return refuse("out of memory");
            }
        }
    }
    if (!stream_open((int)argument(argc, argv, "stream", -1), (int)argument(argc, argv, "control", -1), vcpu_count)) {
        return refuse("the control page cannot be mapped");
    }
    if (!tables_open((int)argument(argc, argv, "ram", -1), (uint64_t)argument(argc, argv, "ram_bytes", 0),
                     (unsigned)argument(argc, argv, "linger", 64), (unsigned)argument(argc, argv, "max_tables", 1 << 20), vcpu_count > 1)) {
        return refuse("guest RAM cannot be mapped");
    }
    if (pthread_create(&flusher, NULL, flush_now_and_then, NULL) != 0) {
        return refuse("no thread can be started");
    }
    pthread_detach(flusher);
    control = stream_control();
    stream_control()->api = (uint64_t)qemu_plugin_version;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_exit_qemu, NULL);
    qemu_on_stop(id, on_stopped);
    return 0;
}
