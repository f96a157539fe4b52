/*
 * What differs between QEMU versions.
 *
 * Registers: QEMU's own symbols, which Debian's binaries export in every version (gdb's register numbers); where they are
 * missing, the plugin API's register calls (QEMU 9.0 and later), which work on a vCPU's thread only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#include "shadowtrace.h"

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* QEMU's own "the vCPU this thread runs". Weak: touched only after dlsym has found it. */
extern __thread void *current_cpu __attribute__((weak, tls_model("initial-exec")));

struct register_descriptor {
    void *handle;
    const char *name;
    const char *feature;
};

typedef struct {
    char *data;
    unsigned len;
} GArray;

static void *(*get_cpu)(int index);
static int (*internal_read)(void *cpu, GByteArray *to, int number);
static GArray *(*api_registers)(void);
static int (*api_read)(void *handle, GByteArray *to);
static const void *(*insn_data_pointer)(const struct qemu_plugin_insn *insn);
static size_t (*insn_data_copy)(const struct qemu_plugin_insn *insn, void *to, size_t most);
static void *(*add_state_handler)(void (*handler)(void *data, bool running, int state), void *data);
static GByteArray *(*array_new)(void);
static GByteArray *(*array_resize)(GByteArray *array, unsigned length);
static bool has_current_cpu;
static void (*stopped_handler)(void);
static __thread GByteArray *scratch;

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

bool qemu_open(void)
{
    FIND(get_cpu, "qemu_get_cpu");
    FIND(internal_read, "x86_cpu_gdb_read_register");
    FIND(api_registers, "qemu_plugin_get_registers");
    FIND(api_read, "qemu_plugin_read_register");
    FIND(add_state_handler, "qemu_add_vm_change_state_handler");
    FIND(array_new, "g_byte_array_new");
    FIND(array_resize, "g_byte_array_set_size");
    if (qemu_plugin_version >= 3) {
        FIND(insn_data_copy, "qemu_plugin_insn_data");
    } else {
        FIND(insn_data_pointer, "qemu_plugin_insn_data");
    }
    has_current_cpu = dlsym(RTLD_DEFAULT, "current_cpu") != NULL;
    return array_new && array_resize && ((get_cpu && internal_read) || (api_registers && api_read));
}

static const char *register_name(enum reg number)
{
    static const char *const general[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

    switch (number) {
    case REG_EFLAGS: return "eflags";
    case REG_CS: return "cs";
    case REG_FS_BASE: return "fs_base";
    case REG_GS_BASE: return "gs_base";
    case REG_CR0: return "cr0";
    case REG_CR2: return "cr2";
    case REG_CR3: return "cr3";
    case REG_CR4: return "cr4";
    case REG_EFER: return "efer";
    default: return number < 16 ? general[number] : "rip";
    }
}

static int api_read_by_name(const char *name)
{
    static __thread GArray *known;

    if (!known) {
        known = api_registers();
    }
    for (unsigned i = 0; i < known->len; i++) {
        struct register_descriptor *descriptor = (struct register_descriptor *)known->data + i;
        if (strcmp(descriptor->name, name) == 0) {
            return api_read(descriptor->handle, scratch);
        }
    }
    return 0;
}

/* A register of a vCPU. With the plugin API only: on that vCPU's own thread. */
uint64_t qemu_reg(unsigned vcpu, enum reg number)
{
    uint64_t value = 0;
    int bytes;

    if (!scratch) {
        scratch = array_new();
    }
    array_resize(scratch, 0);
    bytes = internal_read && get_cpu ? internal_read(get_cpu((int)vcpu), scratch, number) : api_read_by_name(register_name(number));
    if (bytes > 0) {
        memcpy(&value, scratch->data, bytes < 8 ? (size_t)bytes : 8);
    }
    return value;
}

/*
 * Where an instruction runs that was translated at `translated`. From 8.0 on a block serves every address at which its page
 * is mapped; rip is then kept up to date at the start of each block, so it tells the page. Older ones translate anew.
 */
uint64_t qemu_running_pc(unsigned vcpu, uint64_t translated)
{
    if (qemu_plugin_version < 2 || !internal_read || !get_cpu) {
        return translated;
    }
    /* Blocks end with their page: rip lies at or up to a page before the instruction. */
    uint64_t apart = qemu_reg(vcpu, REG_RIP) - translated + PAGE_BYTES - 1;
    return translated + (apart & ~(uint64_t)(PAGE_BYTES - 1));
}

/* Which vCPU's thread this is, at translation; -1 where that cannot be told. */
int qemu_translating_vcpu(void)
{
    static __thread int known = -1;
    static __thread void *known_cpu;

    if (!has_current_cpu || !get_cpu || !current_cpu) {
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

static void on_state(void *data, bool running, int state)
{
    (void)data;
    (void)running;
    (void)state;
    stopped_handler();
}

/* Have `stopped` called whenever all vCPUs have stopped, and before they go on; never, where this QEMU has no way to. */
void qemu_on_stop(void (*stopped)(void))
{
    stopped_handler = stopped;
    if (add_state_handler && internal_read) {
        add_state_handler(on_state, NULL);
    }
}
