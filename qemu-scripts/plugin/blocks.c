/*
 * Blocks: the fetches of the guest, and what is pending when the next one begins.
 */
#include "vcpu.h"

/* What is pending is resolved, and where a page fault's handler begins the fault is recorded. */
RARE void between_blocks(unsigned vcpu, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];

    pthread_mutex_lock(&lock);
    if (!closed) {
        resolve(vcpu);
        if (settings.touch_entries && !user && va == v->fault_handler) {
            record_fault(vcpu);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void begin_block(unsigned vcpu, uint64_t va, bool user)
{
    struct vcpu *v = &vcpus[vcpu];
    uint64_t handler = atomic_load_explicit(&v->fault_handler, memory_order_relaxed);

    catch_up(v);
    if (v->pending || va == handler) {
        between_blocks(vcpu, va, user);
    }
    touch(vcpu, TOUCH_FETCH, va, user);
    if (va >> PAGE_SHIFT != handler >> PAGE_SHIFT) {
        remember(v, TOUCH_FETCH, va, user);
    }
}

static RARE void user_block_slow(unsigned vcpu, void *data)
{
    begin_block(vcpu, (uint64_t)(uintptr_t)data, true);
}

static RARE void kernel_block_slow(unsigned vcpu, void *data)
{
    begin_block(vcpu, (uint64_t)(uintptr_t)data, false);
}

/* A block's callback gets its start address. There is another for a guest's only vCPU, as for accesses. */
static inline void on_user_block(unsigned vcpu, void *data)
{
    if (!seen(vcpu, TOUCH_FETCH, (uint64_t)(uintptr_t)data, true, 1)) {
        user_block_slow(vcpu, data);
    }
}

static inline void on_kernel_block(unsigned vcpu, void *data)
{
    if (!seen(vcpu, TOUCH_FETCH, (uint64_t)(uintptr_t)data, false, 1)) {
        kernel_block_slow(vcpu, data);
    }
}

/* Where the block runs whose code segment begins at `base`. */
static inline uint64_t running_block(unsigned vcpu, void *base)
{
    return linear_rip((uint64_t)(uintptr_t)base, qemu_rip(vcpu));
}

/* Where blocks are shared between addresses, their callbacks get the code segment's base. */
static inline void on_shared_user_block(unsigned vcpu, void *base)
{
    on_user_block(vcpu, (void *)(uintptr_t)running_block(vcpu, base));
}

static inline void on_shared_kernel_block(unsigned vcpu, void *base)
{
    on_kernel_block(vcpu, (void *)(uintptr_t)running_block(vcpu, base));
}

#define BLOCK_CALLBACK(name, block) \
    static void name(unsigned vcpu, void *data) { block(vcpu, data); } \
    static void sole_##name(unsigned vcpu, void *data) \
    { \
        (void)vcpu; \
        block(0, data); \
    }

BLOCK_CALLBACK(user_block, on_user_block)
BLOCK_CALLBACK(kernel_block, on_kernel_block)
BLOCK_CALLBACK(shared_user_block, on_shared_user_block)
BLOCK_CALLBACK(shared_kernel_block, on_shared_kernel_block)

static void cross(unsigned vcpu, uint64_t va, bool user)
{
    begin_block(vcpu, va, user);
    touch(vcpu, TOUCH_FETCH, (va | (PAGE_BYTES - 1)) + 1, user);
}

static void on_crossing_user_block(unsigned vcpu, void *data)
{
    cross(vcpu, (uint64_t)(uintptr_t)data, true);
}

static void on_crossing_kernel_block(unsigned vcpu, void *data)
{
    cross(vcpu, (uint64_t)(uintptr_t)data, false);
}

static void on_crossing_shared_user_block(unsigned vcpu, void *base)
{
    cross(vcpu, running_block(vcpu, base), true);
}

static void on_crossing_shared_kernel_block(unsigned vcpu, void *base)
{
    cross(vcpu, running_block(vcpu, base), false);
}

exec_cb block_callback(bool shared, bool user, bool crosses)
{
    static const exec_cb crossing[2][2] = {
        {on_crossing_kernel_block, on_crossing_user_block},
        {on_crossing_shared_kernel_block, on_crossing_shared_user_block},
    };
    static const exec_cb callbacks[2][2][2] = {
        {{kernel_block, user_block}, {shared_kernel_block, shared_user_block}},
        {{sole_kernel_block, sole_user_block}, {sole_shared_kernel_block, sole_shared_user_block}},
    };

    return crosses ? crossing[shared][user] : callbacks[settings.vcpus == 1][shared][user];
}
