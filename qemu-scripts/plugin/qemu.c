/*
 * What differs between QEMU versions.
 *
 * Registers: QEMU's own symbols (gdb's register numbers), which Debian's binaries export in every version. The plugin API's
 * register calls (QEMU 9.0 and later) are no substitute: they tell neither whose code is translated nor of stops.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <string.h>

#include "shadowtrace.h"

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* QEMU's own "the vCPU this thread runs". Weak: touched only after dlsym has found it. */
extern __thread void *current_cpu __attribute__((weak, tls_model("initial-exec")));

/* What QEMU's query-version returns. */
struct version {
    const int64_t *triple;
    const char *package;
};

/* What QEMU marks gdb's breakpoints with. */
#define BP_GDB 0x10

static void *(*get_cpu)(int index);
static int (*insert_breakpoint)(void *cpu, uint64_t va, int flags, void **made);
static void (*leave_blocks)(void *cpu);
static int (*internal_read)(void *cpu, GByteArray *to, int number);
static const struct version *(*query_version)(void **error);
static bool shares_blocks, is_7_2;
static const void *(*insn_data_pointer)(const struct qemu_plugin_insn *insn);
static size_t (*insn_data_copy)(const struct qemu_plugin_insn *insn, void *to, size_t most);
static void (*physical_rw)(uint64_t gpa, void *data, uint64_t bytes, bool write);
static bool (*physical_is_io)(uint64_t gpa);
static void *(*add_state_handler)(void (*handler)(void *data, bool running, int state), void *data);
static GByteArray *(*array_new)(void);
static GByteArray *(*array_resize)(GByteArray *array, unsigned length);
static void (*stopped_handler)(void);
static __thread GByteArray *scratch;

const uint64_t *_Atomic qemu_rips[MAX_VCPUS];

__attribute__((constructor)) static void choose_version(void)
{
    if (dlsym(RTLD_DEFAULT, "qemu_plugin_mem_get_value")) {
        qemu_plugin_version = 4;
    } else if (dlsym(RTLD_DEFAULT, "qemu_plugin_register_vcpu_tb_exec_cond_cb")) {
        qemu_plugin_version = 3;
    } else if (dlsym(RTLD_DEFAULT, "qemu_plugin_read_register")) {
        qemu_plugin_version = 2;
    }
}

/* A data pointer from dlsym as a function pointer, the way POSIX asks for. */
#define FIND(function, name) (*(void **)&(function) = dlsym(RTLD_DEFAULT, (name)))

/* Whether this QEMU exports what is needed. */
bool qemu_open(void)
{
    const int64_t *version;

    FIND(get_cpu, "qemu_get_cpu");
    FIND(insert_breakpoint, "cpu_breakpoint_insert");
    FIND(leave_blocks, "cpu_exit");
    FIND(internal_read, "x86_cpu_gdb_read_register");
    FIND(query_version, "qmp_query_version");
    FIND(add_state_handler, "qemu_add_vm_change_state_handler");
    FIND(physical_rw, "cpu_physical_memory_rw");
    FIND(physical_is_io, "cpu_physical_memory_is_io");
    FIND(array_new, "g_byte_array_new");
    FIND(array_resize, "g_byte_array_set_size");
    if (qemu_plugin_version >= 3) {
        FIND(insn_data_copy, "qemu_plugin_insn_data");
    } else {
        FIND(insn_data_pointer, "qemu_plugin_insn_data");
    }
    if (!get_cpu || !insert_breakpoint || !leave_blocks || !internal_read || !query_version || !add_state_handler || !array_new || !array_resize ||
        !dlsym(RTLD_DEFAULT, "current_cpu")) {
        return false;
    }
    version = query_version(NULL)->triple;
    shares_blocks = version[0] >= 8;
    is_7_2 = version[0] == 7 && version[1] == 2;
    return true;
}

/*
 * Have gdb stop before the block at `va`, which is being translated, begins: a breakpoint as gdb would insert it, on every vCPU, since
 * gdb will have it removed from all. This vCPU has looked for breakpoints already: it is sent back before the block's first instruction.
 */
void qemu_stop_at(uint64_t va)
{
    void *cpu;

    for (int i = 0; (cpu = get_cpu(i)); i++) {
        insert_breakpoint(cpu, va, BP_GDB, NULL);
    }
    leave_blocks(current_cpu);
}

uint64_t qemu_reg(unsigned vcpu, enum reg number)
{
    uint64_t value = 0;
    int bytes;

    if (!scratch) {
        scratch = array_new();
    }
    array_resize(scratch, 0);
    bytes = internal_read(get_cpu((int)vcpu), scratch, number);
    if (bytes > 0) {
        memcpy(&value, scratch->data, bytes < 8 ? (size_t)bytes : 8);
    }
    return value;
}

/*
 * Where QEMU keeps a vCPU's rip: right behind its 16 general registers, the only place in the vCPU's object that holds these
 * 17 values. NULL where that is not so.
 */
static const uint64_t *find_rip(unsigned vcpu)
{
    /* The order in which instructions number them, by gdb's numbers. */
    static const int order[] = {0, 2, 3, 1, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, REG_RIP};
    uint64_t values[sizeof order / sizeof *order];
    uint64_t *words = get_cpu((int)vcpu);
    const uint64_t *found = NULL;
    size_t count = malloc_usable_size(words) / sizeof *words;

    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        values[i] = qemu_reg(vcpu, (enum reg)order[i]);
    }
    for (size_t i = 0; i + sizeof values / sizeof *values <= count; i++) {
        if (memcmp(words + i, values, sizeof values) == 0) {
            if (found) {
                return NULL;
            }
            found = words + i + sizeof values / sizeof *values - 1;
        }
    }
    return found;
}

/* The first vCPU's object and its size, for what is known of QEMU 7.2 alone; NULL in others. */
void *qemu_7_2_vcpu(size_t *bytes)
{
    void *object = get_cpu(0);

    *bytes = malloc_usable_size(object);
    return is_7_2 ? object : NULL;
}

/* A segment register as QEMU keeps it; its flags are the upper half of the descriptor. */
struct segment {
    uint32_t selector;
    uint64_t base;
    uint32_t limit, flags;
};

/* Where QEMU keeps each vCPU's task register; NULL: not known. */
static const struct segment *tasks[MAX_VCPUS];

/* The registers ldt, tr, gdt and idt, one behind the other, as a reset leaves them. */
static bool are_reset(const struct segment registers[4])
{
    static const uint32_t flags[4] = {0x8200, 0x8b00, 0, 0}; /* present: LDT; present: busy 32-bit TSS */

    for (unsigned i = 0; i < 4; i++) {
        if (registers[i].selector || registers[i].base || registers[i].limit != 0xffff || registers[i].flags != flags[i]) {
            return false;
        }
    }
    return true;
}

/* Find where the task register is kept, before the vCPU's first instruction: gdb's numbers have none for it. */
void qemu_locate_task(unsigned vcpu)
{
    const uint64_t *words = get_cpu((int)vcpu);
    size_t count = malloc_usable_size((void *)words) / sizeof *words;
    const struct segment *found = NULL;

    for (size_t i = 0; i + 4 * sizeof *found / sizeof *words <= count; i++) {
        const struct segment *registers = (const struct segment *)(words + i);
        if (are_reset(registers)) {
            if (found) {
                return;
            }
            found = registers + 1;
        }
    }
    tasks[vcpu] = found;
}

/* The task register's selector, with TASK_32 where it names a 32-bit task; always the same where it is not known. */
uint32_t qemu_task(unsigned vcpu)
{
    const struct segment *task = tasks[vcpu];

    return task ? (task->selector & 0xffff) | (task->flags >> 11 & 1 ? TASK_32 : 0) : 0;
}

/*
 * Where rip points while code runs: QEMU 7.2 keeps it in the page of the instruction. The six segment registers, cs the second, lie
 * before ldt, which lies before the task register.
 */
uint64_t qemu_7_2_linear_rip(void)
{
    const struct segment *task = tasks[0];

    return linear_rip(task ? (task - 6)->base : 0, qemu_rip(0));
}

/*
 * Whether a block serves every address at which its page is mapped, as from QEMU 8.0 on: rip is then kept up to date at the
 * start of each block, and the code segment's base is the same wherever it runs. Older ones translate anew.
 */
bool qemu_shares_blocks(void)
{
    return shares_blocks;
}

/* Find again at each translation where rip is kept, until that is known; no longer believe what does not hold it. */
void qemu_locate_rip(unsigned vcpu)
{
    static bool doubtful[MAX_VCPUS];
    const uint64_t *rip = qemu_rips[vcpu];

    if (doubtful[vcpu]) {
        return;
    }
    if (!rip) {
        qemu_rips[vcpu] = find_rip(vcpu);
    } else if ((uint32_t)*rip != (uint32_t)qemu_reg(vcpu, REG_RIP)) {
        qemu_rips[vcpu] = NULL;
        doubtful[vcpu] = true;
    }
}

/* Where an instruction runs that was translated at `translated`: where blocks are shared, rip tells the page. */
uint64_t qemu_running_pc(unsigned vcpu, uint64_t translated)
{
    if (!shares_blocks) {
        return translated;
    }
    /* Blocks end with their page: rip lies at or up to a page before the instruction. */
    uint64_t apart = qemu_rip(vcpu) - translated + PAGE_BYTES - 1;
    return translated + (apart & ~(uint64_t)(PAGE_BYTES - 1));
}

/* Which vCPU's thread this is; -1: none's. */
int qemu_translating_vcpu(void)
{
    static __thread int known = -1;
    static __thread void *known_cpu;

    if (!current_cpu) {
        return -1;
    }
    if (known_cpu != current_cpu) {
        known_cpu = current_cpu;
        known = -1;
        for (int i = 0; i < MAX_VCPUS && get_cpu(i); i++) {
            if (get_cpu(i) == current_cpu) {
                known = i;
            }
        }
    }
    return known;
}

size_t qemu_insn_bytes(const struct qemu_plugin_insn *insn, uint8_t *to, size_t most)
{
    size_t size = qemu_plugin_insn_size(insn);

    if (size > most) {
        size = most;
    }
    if (insn_data_copy) {
        return insn_data_copy(insn, to, size);
    }
    memcpy(to, insn_data_pointer(insn), size);
    return size;
}

/*
 * What the firmware's ROM holds, below 1 MiB or below 4 GiB; false where there is none. Devices are not asked: reading may change
 * them, and waits for a lock whose holder may wait for ours.
 */
bool qemu_read_rom(uint64_t gpa, void *to, size_t bytes)
{
    bool low = gpa >= 0xc0000 && gpa + bytes <= 0x100000, high = gpa >= 0xff000000 && gpa + bytes <= 0x100000000ull;

    if (!(low || high) || !physical_rw || !physical_is_io || physical_is_io(gpa) || physical_is_io(gpa + bytes - 1)) {
        return false;
    }
    physical_rw(gpa, to, bytes, false);
    return true;
}

static void on_state(void *data, bool running, int state)
{
    (void)data;
    (void)running;
    (void)state;
    stopped_handler();
}

/* Have `stopped` called whenever all vCPUs have stopped, and before they go on. */
void qemu_on_stop(void (*stopped)(void))
{
    stopped_handler = stopped;
    add_state_handler(on_state, NULL);
}
