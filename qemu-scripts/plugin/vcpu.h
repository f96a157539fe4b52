/*
 * What the capture's rooms share: a vCPU as the plugin knows it.
 *
 * vcpu.c       control registers, INVLPG, walks, the page-fault handler
 * touches.c    what has been touched
 * access.c     loads and stores, by callbacks
 * tlb.c        the same without callbacks, where QEMU's TLB can be had
 * takeover.c   where QEMU's TLB lies
 * blocks.c     fetches
 * tasks.c      programs executed, processes forked, address spaces freed
 * quiet.c      moments at which the guest stands still
 * capture.c    instructions, life cycle
 */
#ifndef SHADOWTRACE_VCPU_H
#define SHADOWTRACE_VCPU_H

#include <pthread.h>
#include <stdatomic.h>

#include "shadowtrace.h"

#pragma GCC visibility push(hidden)

/* Keeps what is rare out of the functions that run at each access: they are a few instructions, without a stack frame. */
#define RARE __attribute__((noinline, cold))

enum pending { PENDING_MODE = 1, PENDING_CR3 = 2, PENDING_INVLPG = 4, PENDING_TASK = 8 };
enum touch { TOUCH_LOAD, TOUCH_STORE, TOUCH_FETCH, TOUCH_KINDS };
enum { ACCESS_WRITE = 1, ACCESS_USER = 2, ACCESS_FETCH = 4, ACCESS_FAULT = 8 };

#define NO_VA UINT64_MAX

#define SEEN_SLOTS 256u
/* No canonical address lies in the page that begins here. */
#define NO_PAGE (1ull << 63)

/*
 * Where accesses of a kind say nothing new: virtual addresses of pages, by privilege. A store is there if it is neither a touch
 * nor one to a table. The vCPU's own thread alone writes here, so that nobody else voids an entry: see hide_seen().
 */
struct seen {
    uint64_t page[2][SEEN_SLOTS][TOUCH_KINDS + 1]; /* 32 bytes to a slot: found by a shift */
};

struct vcpu {
    /* What each access and each block looks at, found by a shift: this vCPU's table, or one that is empty. */
    _Alignas(PAGE_BYTES) const struct seen *_Atomic seen;
    _Atomic bool seen_stale;        /* all of its own table is void */
    uint64_t seen_generation;       /* of the tables: stores in its own table hold for this one alone */
    _Atomic uint64_t stored_tables; /* tables that were stored to since the touches were last looked through */
    _Atomic uint64_t fault_handler; /* the #PF gate's target; 0: none */
    uint64_t *touched[TOUCH_KINDS]; /* virtual page << 1 | user, + 1 */
    uint64_t generation;      /* of the tables when the cache was empty; 0 while something is pending: no store goes by unseen */
    unsigned pending;
    uint64_t pending_pc;      /* the instruction that is pending, or NO_VA */
    uint64_t store_cache[STORE_CACHE]; /* virtual page + 1 that is known not to be a table */
    uint64_t cache_generation;
    uint64_t *through[TOUCH_KINDS]; /* for each touch, the set of tables that its translation went through: table_bit()s */
    uint64_t *slots[TOUCH_KINDS];   /* for each table_bit(), the set of entries that went through it, and perhaps more */
    uint64_t store_touch;           /* the store touch recorded last, or NO_VA */
    struct operand invlpg;
    bool known; /* registers have been recorded once */
    _Atomic bool exists; /* and is not only a place for one */
    bool idle;  /* its thread waits: between on_idle and on_resume */
    uint64_t cr0, cr3, cr4, efer;
    uint32_t task;
    struct table *roots[4];
    bool idt_known;
    uint64_t idt_va, gdt_va;
    uint64_t gate_gpa;              /* where the #PF gate lies; 0: nowhere */
};

/* How to capture, set once at the start. */
struct settings {
    unsigned vcpus, touch_entries;
    bool invalidate_on_pt_write, watch_user_stores;
    bool try_tlb, by_tlb; /* loads and stores are told by QEMU's TLB, not by callbacks */
    int ram;              /* the file's descriptor */
    bool every_access; /* what control->every_access said when the guest last stood still */
    const volatile struct control *control;
};

extern struct settings settings;
extern struct vcpu vcpus[MAX_VCPUS];
/* Held by whoever puts something into the stream; the order in which it is taken is the order of events. */
extern pthread_mutex_t lock;
extern bool closed;

/* ---- vcpu.c: all with the lock held ---- */

void resolve(unsigned vcpu);
void notice_task_switch(unsigned vcpu);
void set_pending(unsigned vcpu, unsigned what, uint64_t pc);
bool follows_invlpg(const struct vcpu *v, uint64_t va);
void read_physical(uint64_t gpa, void *to, size_t bytes);
uint64_t translate(const struct vcpu *v, uint64_t va, uint64_t *through);
void look_up_handler(struct vcpu *v);
bool holds_gate(uint64_t gpa);
void stored_to_gate(uint64_t gpa);
void record_fault(unsigned vcpu);
void on_table_register(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *data);

/* ---- touches.c ---- */

bool touches_open(void);
struct seen *own_seen(const struct vcpu *v);
void hide_seen(struct vcpu *v);
void catch_up(struct vcpu *v);
void note_stored_tables(uint64_t tables);
void drop_caches(struct vcpu *v);
void forget_touch(struct vcpu *v, uint64_t page);
void note_touch(unsigned vcpu, enum touch kind, uint64_t va, bool user);
void touch_slow(unsigned vcpu, enum touch kind, uint64_t va, bool user);
void drop_touches(struct vcpu *v);
void notice_every_access(void);

/* ---- access.c ---- */

void access_open(void);
void remember(struct vcpu *v, enum touch kind, uint64_t va, bool user);
void tell_table_store(unsigned vcpu, uint64_t gpa, uint64_t va, bool user);
void on_own_store(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *pc);
mem_cb store_callback(enum effect effect);
mem_cb access_callback(bool user, enum effect effect);

/* ---- blocks.c ---- */

void between_blocks(unsigned vcpu, uint64_t va, bool user);
exec_cb block_callback(bool shared, bool user, bool crosses);

/* ---- tasks.c ---- */

void tasks_translate(struct qemu_plugin_tb *tb, uint64_t va);

/* ---- tlb.c ---- */

bool tlb_open(int ram_fd, uint64_t running);
void tlb_settle(void);
void tlb_forget(enum touch kind, uint64_t va, bool user);
void tlb_forget_all(void);
void tlb_forget_code(qemu_plugin_id_t id);

/* ---- quiet.c ---- */

bool quiet_open(qemu_plugin_id_t id);
void on_halt(unsigned vcpu, void *data);

/* Inline: every access and every block of the guest comes here. */
static inline uint64_t touch_tag(uint64_t va, bool user)
{
    return (va >> PAGE_SHIFT << 1 | user) + 1;
}

/* Whether an access of at most so many bytes says nothing new: one comparison, of how far its page's start lies behind it. */
static inline bool seen(unsigned vcpu, enum touch kind, uint64_t va, bool user, unsigned bytes)
{
    const struct seen *seen = atomic_load_explicit(&vcpus[vcpu].seen, memory_order_relaxed);

    return va - seen->page[user][va >> PAGE_SHIFT & (SEEN_SLOTS - 1)][kind] <= PAGE_BYTES - bytes;
}

/* Whether an access may be one to record; not, where its kind of access to the page was seen and no table was stored to since. */
static inline bool untouched(const struct vcpu *v, enum touch kind, uint64_t va, bool user)
{
    return v->touched[kind][va >> PAGE_SHIFT & (settings.touch_entries - 1)] != touch_tag(va, user) ||
           atomic_load_explicit(&v->stored_tables, memory_order_relaxed);
}

static inline void touch(unsigned vcpu, enum touch kind, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];

    if (atomic_load_explicit(&v->stored_tables, memory_order_relaxed)) {
        drop_touches(v);
    }
    if (untouched(v, kind, va, user)) {
        touch_slow(vcpu, kind, va, user);
    }
}

#pragma GCC visibility pop

#endif
