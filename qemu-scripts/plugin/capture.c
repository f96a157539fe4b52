/*
 * The plugin: instructions and blocks are instrumented here, and its life begins here.
 *
 * What an instruction does to a control register can be read once it is done: it is marked pending and resolved at the
 * start of the vCPU's next block, which always comes before that block's loads and stores.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vcpu.h"

struct settings settings;
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
bool closed;

/* gdb numbers general registers rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp; instructions number them rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi. */
static int8_t gdb_number(int8_t encoded)
{
    static const int8_t order[] = {0, 2, 3, 1, 7, 6, 4, 5};

    return encoded >= 0 && encoded < 8 ? order[encoded] : encoded;
}

/* Page tables only, a block that may follow INVLPG: its operand's registers are what they were. */
static void on_next_block(unsigned vcpu, void *data)
{
    (void)data;
    if (vcpus[vcpu].pending) {
        between_blocks(vcpu, 0, true);
    }
}

/* Before an instruction that will be pending: where blocks have no callback, the one before it still may be. */
static void resolve_first(unsigned vcpu)
{
    if (vcpus[vcpu].pending) {
        between_blocks(vcpu, 0, true);
    }
}

/* The same before what loads cr3 or the task register: it may follow a task switch that an exception made unseen. */
static void notice_first(unsigned vcpu)
{
    resolve_first(vcpu);
    if (vcpus[vcpu].known) {
        pthread_mutex_lock(&lock);
        if (!closed) {
            notice_task_switch(vcpu);
        }
        pthread_mutex_unlock(&lock);
    }
}

static void on_mode_write(unsigned vcpu, void *pc)
{
    resolve_first(vcpu);
    set_pending(vcpu, PENDING_MODE, (uint64_t)(uintptr_t)pc);
}

static void on_cr3_write(unsigned vcpu, void *pc)
{
    notice_first(vcpu);
    set_pending(vcpu, PENDING_CR3, (uint64_t)(uintptr_t)pc);
}

static void on_far_transfer(unsigned vcpu, void *pc)
{
    notice_first(vcpu);
    set_pending(vcpu, PENDING_MODE, (uint64_t)(uintptr_t)pc);
}

static void on_task_write(unsigned vcpu, void *pc)
{
    notice_first(vcpu);
    set_pending(vcpu, PENDING_MODE | PENDING_TASK, (uint64_t)(uintptr_t)pc);
}

/* At the instruction behind it: a task switch that follows within the block must not be taken for that load. */
static void on_task_written(unsigned vcpu, void *data)
{
    (void)data;
    resolve_first(vcpu);
}

/*
 * INVLPG's operand travels in the callback's data, because QEMU does not say when it forgets a block and memory for it could be
 * freed. The address of one relative to rip does not fit: a callback of its own, after the first, brings it.
 */
static void *packed_operand(const struct operand *operand)
{
    uint64_t packed = (uint32_t)operand->displacement;

    packed |= (uint64_t)(operand->base + 2) << 32 | (uint64_t)(operand->index + 1) << 40;
    packed |= (uint64_t)operand->scale_shift << 48 | (uint64_t)(operand->segment + 1) << 52 | (uint64_t)operand->address32 << 56;
    packed |= (uint64_t)operand->length << 57;
    return (void *)(uintptr_t)packed;
}

static struct operand unpacked_operand(uint64_t packed)
{
    return (struct operand){
        .base = (int8_t)((packed >> 32 & 0xff) - 2),
        .index = (int8_t)((packed >> 40 & 0xff) - 1),
        .scale_shift = (int8_t)(packed >> 48 & 0xf),
        .segment = (int8_t)((packed >> 52 & 0xf) - 1),
        .address32 = packed >> 56 & 1,
        .length = packed >> 57 & 0xf,
        .displacement = (int32_t)(uint32_t)packed,
    };
}

static void on_invlpg(unsigned vcpu, void *data)
{
    resolve_first(vcpu);
    vcpus[vcpu].invlpg = unpacked_operand((uint64_t)(uintptr_t)data);
    set_pending(vcpu, PENDING_INVLPG, NO_VA);
}

static void on_invlpg_from(unsigned vcpu, void *data)
{
    struct operand *operand = &vcpus[vcpu].invlpg;

    operand->next_va = qemu_running_pc(vcpu, (uint64_t)(uintptr_t)data) + operand->length;
}

static void on_read_cr2(unsigned vcpu, void *data)
{
    (void)vcpu;
    (void)data;
    atomic_fetch_add((_Atomic uint64_t *)&stream_control()->page_faults, 1);
}

static void instrument_special(struct qemu_plugin_insn *insn, enum insn_kind kind, const struct operand *operand)
{
    uint64_t va = qemu_plugin_insn_vaddr(insn);
    void *pc = (void *)(uintptr_t)va;
    struct operand named;

    switch (kind) {
    case INSN_CR3:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_cr3_write, CB_R_REGS, pc);
        break;
    case INSN_MODE:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mode_write, CB_R_REGS, pc);
        break;
    case INSN_TASK:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_task_write, CB_R_REGS, pc);
        break;
    case INSN_FAR:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_far_transfer, CB_NO_REGS, pc);
        break;
    case INSN_INVLPG:
        named = *operand;
        named.base = gdb_number(operand->base);
        named.index = gdb_number(operand->index);
        named.length = (uint8_t)(operand->next_va - va);
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_invlpg, CB_R_REGS, packed_operand(&named));
        if (named.base == -2) {
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_invlpg_from, CB_NO_REGS, pc);
        }
        break;
    case INSN_LIDT:
    case INSN_LGDT:
        qemu_plugin_register_vcpu_mem_cb(insn, on_table_register, CB_NO_REGS, MEM_RW, kind == INSN_LGDT ? vcpus : NULL);
        break;
    case INSN_READ_CR2:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_read_cr2, CB_NO_REGS, NULL);
        break;
    case INSN_HALT:
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_halt, CB_NO_REGS, NULL);
        break;
    case INSN_PLAIN:
        break;
    }
}

/* Whether the block being translated is user code. */
static bool translating_user_code(unsigned vcpu)
{
    if (!(qemu_reg(vcpu, REG_CR0) & CR0_PE)) {
        return false;
    }
    return (qemu_reg(vcpu, REG_CS) & 3) == 3 || (qemu_reg(vcpu, REG_EFLAGS) & EFLAGS_VM);
}

/* Whether gdb is to stop where this block begins; it is asked for no second time. */
static bool is_stop(uint64_t va)
{
    struct control *control = stream_control();
    uint64_t count = atomic_load_explicit(&control->stop_count, memory_order_acquire), apart = va - control->stop_first;

    return count && apart % control->stop_step == 0 && apart / control->stop_step < count &&
           atomic_compare_exchange_strong(&control->stop_count, &count, 0);
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    unsigned vcpu = (unsigned)qemu_translating_vcpu();
    bool user = translating_user_code(vcpu), shared = qemu_shares_blocks();
    size_t count = qemu_plugin_tb_n_insns(tb);
    uint64_t start = qemu_plugin_tb_vaddr(tb), next = start;
    uint8_t bytes[16];
    struct operand operand;
    bool after_invlpg = true, after_task = false;

    (void)id;
    if (is_stop(start)) {
        qemu_stop_at(start);
    }
    if (!vcpus[vcpu].known) {
        qemu_locate_task(vcpu);
    }
    if (settings.try_tlb) {
        settings.try_tlb = false;
        settings.by_tlb = tlb_open(settings.ram, start);
        stream_control()->by_tlb = settings.by_tlb;
    }
    if (!user) {
        tasks_translate(tb, start);
        pthread_mutex_lock(&lock);
        if (settings.touch_entries) {
            look_up_handler(&vcpus[vcpu]);
        } else {
            if (vcpus[vcpu].pending && !closed) {
                resolve(vcpu);
            }
            after_invlpg = follows_invlpg(&vcpus[vcpu], start);
        }
        pthread_mutex_unlock(&lock);
    }
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t va = qemu_plugin_insn_vaddr(insn);
        size_t size = qemu_insn_bytes(insn, bytes, sizeof bytes);
        enum insn_kind kind = decode(bytes, size, va, &operand);
        void *pc = (void *)(uintptr_t)va;

        next = va + size;
        if (after_task) {
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_task_written, CB_NO_REGS, NULL);
        }
        after_task = !user && kind == INSN_TASK;
        /* In user code the others only fault. */
        if (!user || kind == INSN_FAR) {
            instrument_special(insn, kind, &operand);
        }
        mem_cb callback = settings.by_tlb ? NULL
                          : settings.touch_entries ? access_callback(user, effect_of(bytes, size))
                          : user && !settings.watch_user_stores ? NULL
                          : kind == INSN_PLAIN ? store_callback(effect_of(bytes, size)) : on_own_store;
        if (callback) {
            qemu_plugin_register_vcpu_mem_cb(insn, callback, CB_NO_REGS, MEM_RW, pc);
        }
    }
    if (shared || settings.by_tlb) {
        qemu_locate_rip(vcpu);
    }
    if (settings.touch_entries) {
        bool crosses = (next - 1) >> PAGE_SHIFT != start >> PAGE_SHIFT;
        uint64_t told = start;
        if (shared) {
            told = (uint32_t)(start - qemu_reg(vcpu, REG_RIP));
        }
        qemu_plugin_register_vcpu_tb_exec_cb(tb, block_callback(shared, user, crosses), CB_R_REGS, (void *)(uintptr_t)told);
    } else if (!user && after_invlpg) {
        qemu_plugin_register_vcpu_tb_exec_cb(tb, on_next_block, CB_R_REGS, NULL);
    }
}

/* ---- life cycle ---- */

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

/* Arguments: stream, control, ram: inherited descriptors; ram_bytes; retire_after_stores, touch, invalidate_on_pt_write, max_tables, user_stores, drop, tlb. */
__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    extern int qemu_plugin_version;

    if (!info->system_emulation || strcmp(info->target_name, "x86_64") != 0) {
        return refuse("it needs qemu-system-x86_64");
    }
    if (!qemu_open()) {
        return refuse("this QEMU does not export the functions that tell its registers and stops: add --engine gdb, which needs none");
    }
    settings.vcpus = (unsigned)info->system.max_vcpus;
    settings.touch_entries = (unsigned)argument(argc, argv, "touch", 1024);
    settings.invalidate_on_pt_write = settings.touch_entries && argument(argc, argv, "invalidate_on_pt_write", 1);
    settings.watch_user_stores = argument(argc, argv, "user_stores", 0);
    settings.try_tlb = settings.vcpus == 1 && argument(argc, argv, "tlb", 1);
    settings.ram = (int)argument(argc, argv, "ram", -1);
    if (settings.vcpus > MAX_VCPUS || settings.touch_entries > MAX_TOUCH || (settings.touch_entries & (settings.touch_entries - 1))) {
        return refuse("bad number of vCPUs or of first-touch entries");
    }
    if (!touches_open()) {
        return refuse("out of memory");
    }
    access_open();
    if (!stream_open((int)argument(argc, argv, "stream", -1), (int)argument(argc, argv, "control", -1), argument(argc, argv, "drop", 0))) {
        return refuse("the control page cannot be mapped");
    }
    if (!tables_open(settings.ram, (uint64_t)argument(argc, argv, "ram_bytes", 0),
                     (unsigned)argument(argc, argv, "retire_after_stores", 64), (unsigned)argument(argc, argv, "max_tables", 1 << 20), settings.vcpus > 1)) {
        return refuse("guest RAM cannot be mapped");
    }
    if (!quiet_open(id)) {
        return refuse("no thread can be started");
    }
    settings.control = stream_control();
    for (unsigned i = 0; i < settings.vcpus; i++) {
        vcpus[i].pending = PENDING_MODE; /* its registers have never been recorded */
    }
    stream_control()->api = (uint64_t)qemu_plugin_version;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_flush_cb(id, tlb_forget_code);
    return 0;
}
