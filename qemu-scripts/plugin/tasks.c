/*
 * Linux tasks: a note in the stream when one executes a program, is forked, or frees its top table.
 *
 * The recorder says where the kernel's functions lie as soon as it knows how far the kernel was moved; a block that begins at one is
 * instrumented. There are notes once the first program is executed, when the recorder has found where a task's fields lie.
 */
#include <string.h>

#include "vcpu.h"

/* What follows a note of an executed program: its arguments' addresses, and their strings. */
#define MAX_ARGUMENTS 64u
#define MAX_STRINGS 2048u

/* As tracer/plugin.py reads it. */
struct note {
    int32_t pid;
    uint32_t sp_bytes, text_bytes, word;
    char comm[16];
    uint64_t sp, text_va;
    uint8_t data[(MAX_ARGUMENTS + 2) * 8 + MAX_STRINGS];
};

_Static_assert(sizeof(struct note) <= 16 * MAX_NOTE_RECORDS, "a note does not fit");

/* Up to `bytes` at a virtual address of the guest; how many there were, up to where nothing is mapped. */
static uint32_t read_virtual(const struct vcpu *v, uint64_t va, void *to, uint32_t bytes)
{
    uint32_t done = 0;

    while (done < bytes) {
        uint64_t through = 0, gpa = translate(v, va + done, &through);
        uint32_t piece = PAGE_BYTES - ((va + done) & (PAGE_BYTES - 1));

        piece = piece < bytes - done ? piece : bytes - done;
        if (!gpa || !tables_in_ram(gpa, piece)) {
            break;
        }
        read_physical(gpa, (uint8_t *)to + done, piece);
        done += piece;
    }
    return done;
}

/* A word of the guest; 0 where nothing is mapped. */
static uint64_t read_word(const struct vcpu *v, uint64_t va, unsigned bytes)
{
    uint64_t word = 0;

    return read_virtual(v, va, &word, bytes) == bytes ? word : 0;
}

/* Process id and name of a task; false where they cannot be read. */
static bool describe(const struct vcpu *v, const struct task_layout *layout, uint64_t task, struct note *note)
{
    return read_virtual(v, task + layout->pid, &note->pid, sizeof note->pid) == sizeof note->pid &&
           read_virtual(v, task + layout->comm, note->comm, sizeof note->comm) == sizeof note->comm;
}

/* Where the top table of an address space lies, from where the kernel has it mapped; 0: nowhere. */
static uint64_t root_at(const struct vcpu *v, uint64_t va)
{
    uint64_t through = 0;

    return va ? translate(v, va, &through) : 0;
}

/* start_thread(regs, new_ip, new_sp): the new program's stack holds the number of arguments, their addresses, and 0. */
static uint64_t executed(unsigned vcpu, const struct task_layout *layout, unsigned word, struct note *note)
{
    const struct vcpu *v = &vcpus[vcpu];
    bool wide = layout->bits == 64;
    uint64_t here = qemu_reg(vcpu, wide ? REG_GS_BASE : REG_FS_BASE) + layout->current_task, task;

    here = wide ? here : (uint32_t)here;
    task = read_word(v, here, layout->bits / 8);
    if (!task || !describe(v, layout, task, note)) {
        return 0;
    }
    note->word = word;
    note->sp = wide ? qemu_reg(vcpu, REG_RDX) : (uint32_t)qemu_reg(vcpu, REG_RCX);
    note->sp_bytes = read_virtual(v, note->sp, note->data, (MAX_ARGUMENTS + 2) * word);
    if (note->sp_bytes >= 2 * word) {
        memcpy(&note->text_va, note->data + word, word);
        note->text_bytes = read_virtual(v, note->text_va, note->data + note->sp_bytes, MAX_STRINGS);
    }
    return v->cr3 & (wide || !(v->cr4 & CR4_PAE) ? (wide ? BASE64 : BASE32) : 0xffffffe0u);
}

/* wake_up_new_task(task): of a process with an address space of its own; a thread shares that of another. */
static uint64_t forked(unsigned vcpu, const struct task_layout *layout, struct note *note)
{
    const struct vcpu *v = &vcpus[vcpu];
    bool wide = layout->bits == 64;
    uint64_t task = wide ? qemu_reg(vcpu, REG_RDI) : (uint32_t)qemu_reg(vcpu, REG_RAX);
    uint64_t mm = layout->mm ? read_word(v, task + layout->mm, layout->bits / 8) : 0, root;

    if (!mm || !describe(v, layout, task, note)) {
        return 0;
    }
    root = root_at(v, read_word(v, mm + layout->pgd, layout->bits / 8));
    return root == (v->cr3 & (wide ? BASE64 : 0xffffffe0u)) ? 0 : root;
}

/* pgd_free(mm, pgd) */
static uint64_t freed(unsigned vcpu, const struct task_layout *layout)
{
    return root_at(&vcpus[vcpu], layout->bits == 64 ? qemu_reg(vcpu, REG_RSI) : (uint32_t)qemu_reg(vcpu, REG_RDX));
}

static void on_task(unsigned vcpu, void *data)
{
    const struct task_layout *layout = &stream_control()->tasks;
    enum task_event what = (enum task_event)(uintptr_t)data;
    struct note note = {0};
    uint64_t root;

    if (!atomic_load_explicit(&layout->begun, memory_order_acquire)) {
        return;
    }
    pthread_mutex_lock(&lock);
    if (!closed) {
        resolve(vcpu);
        switch (what) {
        case TASK_EXEC:
        case TASK_EXEC_32:
            root = executed(vcpu, layout, what == TASK_EXEC ? layout->bits / 8 : 4, &note);
            break;
        case TASK_FORK:
            root = forked(vcpu, layout, &note);
            break;
        default:
            root = freed(vcpu, layout);
        }
        if (root) {
            stream_note(vcpu, what, root, &note, what == TASK_END ? 0 : sizeof note - sizeof note.data + note.sp_bytes + note.text_bytes);
        }
    }
    pthread_mutex_unlock(&lock);
}

/* A kernel's block that begins at `va` is being translated. */
void tasks_translate(struct qemu_plugin_tb *tb, uint64_t va)
{
    const struct task_layout *layout = &stream_control()->tasks;

    for (unsigned what = 0; what < TASK_EVENTS; what++) {
        if (va == layout->functions[what] && va) {
            qemu_plugin_register_vcpu_tb_exec_cb(tb, on_task, CB_R_REGS, (void *)(uintptr_t)what);
        }
    }
}
