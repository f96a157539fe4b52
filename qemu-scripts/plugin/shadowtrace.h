/*
 * The capture plugin: a guest's paging events into a stream of fixed records.
 *
 * qemu.c       what differs between QEMU versions: registers, instruction bytes, vCPU state
 * stream.c     records into the pipe to the recorder, counters into the shared control page
 * tables.c     which frames are page tables: links, retirement
 * content.c    what they hold, and what changed it unseen
 * decode.c     the instructions that matter, told by their bytes
 * operands.c   what the others do to memory
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
#ifndef SHADOWTRACE_H
#define SHADOWTRACE_H

#include "api.h"

/* All that follows is the plugin's own: no access to it goes through a table of addresses. */
#pragma GCC visibility push(hidden)

#define PAGE_BYTES 4096u
#define PAGE_SHIFT 12
#define MAX_VCPUS 64
#define MAX_TOUCH 65536u
#define STORE_CACHE 256u

#define CR0_PE (1ull << 0)
#define CR0_TS (1ull << 3)
#define CR0_PG (1ull << 31)
#define CR4_PSE (1ull << 4)
#define CR4_PAE (1ull << 5)
#define CR4_LA57 (1ull << 12)
#define EFER_LMA (1ull << 10)
#define EFLAGS_VM (1ull << 17)

#define PTE_PRESENT 1ull
#define PTE_ACCESSED 0x20ull
#define PTE_PS (1ull << 7)
#define BASE64 0x000ffffffffff000ull
#define BASE32 0xfffff000ull

/* ---- stream.c ---- */

enum record_kind {
    REC_REGS = 1,   /* addr cr0, value cr4; one REC_EFER follows */
    REC_CR3 = 2,    /* addr the value; with flags 1 two REC_PDPTES follow */
    REC_WRITE = 3,  /* flags size | seen << 4 | WRITE_HAS_PC, addr gpa, value; with WRITE_HAS_PC one REC_PC follows */
    REC_PAGE = 4,   /* addr gpa, value the number of REC_WORDS that follow */
    REC_ACCESS = 5, /* flags 1 write, 2 user, 4 fetch, 8 fault; addr va */
    REC_INVLPG = 6, /* addr va */
    REC_NOTE = 7,   /* no event: flags a task_event, addr the root, value the number of REC_DATA that follow */
    REC_EFER = 16,  /* addr efer */
    REC_PDPTES = 17, /* addr, value: two entries */
    REC_WORDS = 18, /* flags: index of the word in addr; seq: index of the word in value, or NO_WORD */
    REC_PC = 19,    /* addr: va of the instruction that stored */
    REC_DATA = 20,  /* addr, value: 16 bytes of a note */
};

#define NO_WORD 0xffffffffu
#define WRITE_SIZE 15u
#define SEEN_FOREIGN (3u << 4)
#define WRITE_HAS_PC 0x100u

struct record {
    uint8_t kind;
    uint8_t vcpu;
    uint16_t flags;
    uint32_t seq; /* of this vCPU's events, from 0; side records have their own meaning */
    uint64_t addr;
    uint64_t value;
};

/* What Linux does with an address space. */
enum task_event { TASK_EXEC, TASK_EXEC_32, TASK_FORK, TASK_END, TASK_EVENTS };

/* Where the kernel's functions for these lie, and a task's fields; set by the recorder. */
struct task_layout {
    uint64_t functions[TASK_EVENTS]; /* 0: not known */
    uint64_t bits;                   /* of the kernel's word */
    uint64_t current_task;           /* from the base of gs, or of fs in a 32-bit kernel */
    uint64_t pid, comm, mm, pgd;     /* offsets; mm is 0 where it was not found */
    _Atomic uint64_t begun;          /* written last: the fields above hold */
};

#define MAX_NOTE_RECORDS 192u

/* What the recorder looks at, and what it says, while the guest runs: the control memfd's page. */
struct control {
    uint64_t magic;
    uint64_t events;       /* events put into the stream */
    uint64_t dropped;      /* events that could not be put there */
    uint64_t tables;       /* table pages tracked now */
    uint64_t tables_peak;
    uint64_t tables_refused; /* tables not tracked because of max_tables */
    uint64_t page_faults;  /* guest page faults: mov from cr2 */
    uint64_t api;          /* qemu_plugin_version */
    uint64_t closed;       /* 1: the last record is out */
    uint64_t by_kind[8];
    uint64_t every_access; /* set by the recorder: record each access, not first touches alone */
    uint64_t by_vcpu[MAX_VCPUS];
    uint64_t by_tlb;       /* 1: loads and stores are told by QEMU's TLB, not by callbacks */
    /* Set by the recorder: gdb is to stop at the first block that begins at one of so many addresses, so many bytes apart. */
    uint64_t stop_first, stop_step;
    _Atomic uint64_t stop_count; /* written last; 0 again once one has begun */
    struct task_layout tasks;
    uint64_t notes_dropped;
};

#define CONTROL_MAGIC 0x5368547230303031ull

bool stream_open(int stream_fd, int control_fd, bool drop_when_full);
struct control *stream_control(void);
void stream_event(const struct record *event, const struct record *side, unsigned sides);
void stream_note(unsigned vcpu, enum task_event what, uint64_t root, const void *data, size_t bytes);
void stream_flush(void);
void stream_close(void);

/* ---- tables.c ---- */

/* A kind of table: levels 1..5 of 8-byte entries, levels 1 and 2 of 4-byte entries. */
enum table_kind { T64_L1, T64_L2, T64_L3, T64_L4, T64_L5, T32_L1, T32_L2, TABLE_KINDS };

struct table;

bool tables_open(int ram_fd, uint64_t ram_bytes, unsigned retire_after_stores, unsigned max_tables, bool several_vcpus);
bool tables_in_ram(uint64_t gpa, size_t bytes);
void tables_read(uint64_t gpa, void *to, size_t bytes);
bool tables_is_tracked(uint64_t gpa);
bool tables_may_link(uint64_t gpa);
struct table *tables_load_root(unsigned vcpu, uint64_t gfn, enum table_kind kind);
void tables_unload_root(struct table *root);
void tables_store(unsigned vcpu, uint64_t gpa, unsigned size, uint64_t pc);
void tables_set_pse(unsigned vcpu, bool pse);
void tables_pdptes(uint64_t cr3, uint64_t pdptes[4]);
void tables_pdpt(unsigned vcpu, uint64_t cr3);
uint64_t tables_foreign(void);
uint64_t table_bit(uint64_t gpa);
/* Goes up whenever the set of tracked pages grows: caches of "not a table" from before are void. */
extern _Atomic uint64_t tables_generation;

/* ---- touches.c ---- */

void outdate_store_caches(void);

/* ---- qemu.c ---- */

enum reg { REG_RAX = 0, REG_RCX = 2, REG_RDX = 3, REG_RSI = 4, REG_RDI = 5, REG_RSP = 7, REG_RIP = 16, REG_EFLAGS = 17, REG_CS = 18,
           REG_FS_BASE = 24, REG_GS_BASE = 25, REG_CR0 = 27, REG_CR2 = 28, REG_CR3 = 29, REG_CR4 = 30, REG_EFER = 32 };

/* Of what qemu_task() tells: a 32-bit task. */
#define TASK_32 (1u << 16)

bool qemu_open(void);
void qemu_stop_at(uint64_t va);
uint64_t qemu_reg(unsigned vcpu, enum reg number);
bool qemu_shares_blocks(void);
void qemu_locate_rip(unsigned vcpu);
uint64_t qemu_running_pc(unsigned vcpu, uint64_t translated);
int qemu_translating_vcpu(void);
void *qemu_7_2_vcpu(size_t *bytes);
uint64_t qemu_7_2_linear_rip(void);
void qemu_locate_task(unsigned vcpu);
uint32_t qemu_task(unsigned vcpu);
bool qemu_read_rom(uint64_t gpa, void *to, size_t bytes);
size_t qemu_insn_bytes(const struct qemu_plugin_insn *insn, uint8_t *to, size_t most);
void qemu_on_stop(void (*stopped)(void));
/* Where QEMU keeps each vCPU's rip; NULL: not known. */
extern const uint64_t *_Atomic qemu_rips[MAX_VCPUS];

/* rip, by the quickest way: where blocks are shared each of them asks. */
static inline uint64_t qemu_rip(unsigned vcpu)
{
    const uint64_t *rip = __atomic_load_n(&qemu_rips[vcpu], __ATOMIC_RELAXED);

    return __builtin_expect(rip != NULL, 1) ? *rip : qemu_reg(vcpu, REG_RIP);
}

/* The linear address of rip in a code segment that begins at `base`; all 64-bit code has 0. */
static inline uint64_t linear_rip(uint64_t base, uint64_t rip)
{
    return base ? (uint32_t)(base + rip) : rip;
}

/* ---- decode.c ---- */

enum insn_kind {
    INSN_PLAIN,
    INSN_CR3,      /* mov to cr3 */
    INSN_MODE,     /* may change cr0, cr4 or efer */
    INSN_FAR,      /* may switch tasks, and so load cr3 */
    INSN_TASK,     /* may load the task register, and change modes, but switches no task */
    INSN_INVLPG,
    INSN_LIDT,
    INSN_LGDT,
    INSN_READ_CR2,
    INSN_HALT,
};

/* INVLPG's operand in 32-bit or 64-bit addressing: base + index * scale + displacement, plus the base of fs or gs; other
 * segments are taken to be flat. -1: no such register; -2: rip. */
struct operand {
    int8_t base, index, scale_shift, segment;
    bool address32;
    uint8_t length;
    int64_t displacement;
    uint64_t next_va;
};

/* INVLPG without its prefixes: opcode 2, modrm, SIB, displacement 4. */
#define LONGEST_INVLPG 8u

enum insn_kind decode(const uint8_t *bytes, size_t size, uint64_t va, struct operand *operand);
size_t prefix_length(const uint8_t *bytes, size_t size);
bool may_end_in_invlpg(const uint8_t *bytes, size_t size);

/* ---- operands.c ---- */

/* What an instruction may do to memory: load or nothing; store and never load; either, or through QEMU's helpers. */
enum effect { EFFECT_LOADS, EFFECT_STORES, EFFECT_ANY };

enum effect effect_of(const uint8_t *bytes, size_t size);
bool stores_a_byte(const uint8_t *bytes, size_t size);

#pragma GCC visibility pop

#endif
