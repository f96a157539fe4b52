/* A vCPU's paging registers: what instructions did to them, where addresses lead, where page faults go. */
#include <string.h>

#include "vcpu.h"

/* What a page fault's error code may say: P, W, U, RSVD, I, PK, SS, and SGX. */
#define PF_ERROR_BITS 0x807fu

struct vcpu vcpus[MAX_VCPUS];

/* Memory as the guest sees it, ROM included; zeros elsewhere. */
void read_physical(uint64_t gpa, void *to, size_t bytes)
{
    if (tables_in_ram(gpa, bytes) || !qemu_read_rom(gpa, to, bytes)) {
        tables_read(gpa, to, bytes);
    }
}

static uint64_t physical_entry(uint64_t gpa, unsigned bytes)
{
    uint64_t entry = 0;

    read_physical(gpa, &entry, bytes);
    return entry;
}

/* Where a virtual address lies, by the tables as they are, which go into `through`; 0 where nothing maps it. */
uint64_t translate(const struct vcpu *v, uint64_t va, uint64_t *through)
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
 * The #PF gate's target, as the descriptor table says now. Linux fills its table before and after it loads it, so this is asked
 * again at lidt, at each change of a control register, at each store to the gate's page and at each translation of a block.
 */
void look_up_handler(struct vcpu *v)
{
    bool wide = v->efer & EFER_LMA;
    unsigned bytes = wide ? 16 : 8;
    uint8_t gate[16] = {0};
    uint64_t handler = 0, through = 0;

    v->gate_gpa = v->idt_known && (v->cr0 & CR0_PG) ? translate(v, v->idt_va + 14 * bytes, &through) : 0;
    if (v->gate_gpa) {
        read_physical(v->gate_gpa, gate, bytes);
    }
    if (gate[5] & 0x80) {
        handler = (uint64_t)gate[0] | (uint64_t)gate[1] << 8 | (uint64_t)gate[6] << 16 | (uint64_t)gate[7] << 24;
        if (wide) {
            uint32_t high;
            memcpy(&high, gate + 8, 4);
            handler |= (uint64_t)high << 32;
        }
    }
    if (atomic_exchange_explicit(&v->fault_handler, handler, memory_order_relaxed) != handler) {
        atomic_store(&v->seen_stale, true); /* blocks of its page have been seen, perhaps */
        hide_seen(v);
    }
}

static bool is_gate_s(const struct vcpu *v, uint64_t gpa)
{
    return v->gate_gpa && v->gate_gpa >> PAGE_SHIFT == gpa >> PAGE_SHIFT;
}

/* Whether a page holds some vCPU's #PF gate. */
bool holds_gate(uint64_t gpa)
{
    for (unsigned i = 0; i < settings.vcpus; i++) {
        if (is_gate_s(&vcpus[i], gpa)) {
            return true;
        }
    }
    return false;
}

/* With a store to such a page done: look these handlers up again. */
void stored_to_gate(uint64_t gpa)
{
    for (unsigned i = 0; i < settings.vcpus; i++) {
        if (is_gate_s(&vcpus[i], gpa)) {
            look_up_handler(&vcpus[i]);
        }
    }
}

/* At the fault handler's first instruction: the access that faulted, from cr2 and the error code on top of the stack. */
void record_fault(unsigned vcpu)
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
        tables_pdptes(cr3, pdptes);
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
        tables_pdptes(v->cr3, pdptes);
        if (!was_pae) {
            /* The processor reads the four entries now, as at a cr3 load: whoever replays has to find them in memory. */
            tables_pdpt(vcpu, v->cr3);
        }
    }
    load_roots(vcpu, pdptes);
    stream_event(&event, &side, 1);
}

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
        read_physical(where, &descriptor, sizeof descriptor);
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
    v->seen_generation = 0;
    hide_seen(v);
}

/* What an instruction is about to do can be read when it is done; until then every store takes the slow path. */
void set_pending(unsigned vcpu, unsigned what, uint64_t pc)
{
    vcpus[vcpu].pending |= what;
    vcpus[vcpu].pending_pc = pc;
    vcpus[vcpu].generation = 0;
    hide_seen(&vcpus[vcpu]);
}

/* Whether the instruction before this address may be INVLPG; where its bytes cannot be seen it may. */
bool follows_invlpg(const struct vcpu *v, uint64_t va)
{
    uint8_t bytes[LONGEST_INVLPG];
    uint64_t gpa, through = 0;

    if ((va & (PAGE_BYTES - 1)) < sizeof bytes) {
        return true;
    }
    gpa = translate(v, va - sizeof bytes, &through);
    if (!gpa || !tables_in_ram(gpa, sizeof bytes)) {
        return true;
    }
    tables_read(gpa, bytes, sizeof bytes);
    return may_end_in_invlpg(bytes, sizeof bytes);
}

/* Whether tasks were switched, to a 32-bit one: with paging on that loads cr3, perhaps with the value it has. */
static bool switched_tasks(unsigned vcpu)
{
    const struct vcpu *v = &vcpus[vcpu];
    uint32_t task = qemu_task(vcpu);

    return v->known && task != v->task && task & TASK_32 && (v->cr0 & CR0_PG) && !(v->efer & EFER_LMA);
}

/* Record what pending instructions did. With the lock held, on a vCPU that is between blocks. */
void resolve(unsigned vcpu)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned pending = v->pending;
    uint64_t cr0, cr3, cr4, efer;
    bool mode, load, moved;

    tlb_settle();
    v->pending = 0;
    if (pending & PENDING_INVLPG) {
        record_invlpg(vcpu);
    }
    if (!(pending & (PENDING_MODE | PENDING_CR3)) && v->known) {
        return;
    }
    load = (pending & PENDING_CR3) || (switched_tasks(vcpu) && !(pending & PENDING_TASK));
    v->task = qemu_task(vcpu);
    cr0 = qemu_reg(vcpu, REG_CR0);
    cr3 = qemu_reg(vcpu, REG_CR3);
    cr4 = qemu_reg(vcpu, REG_CR4);
    efer = qemu_reg(vcpu, REG_EFER);
    /* CR0.TS comes and goes with the FPU and concerns no table. */
    mode = !v->known || ((cr0 ^ v->cr0) & ~CR0_TS) || cr4 != v->cr4 || efer != v->efer;
    moved = cr3 != v->cr3;
    load |= moved;
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
    if (mode || !moved) {
        tlb_forget_all(); /* where it is not certain that QEMU itself has done it just before */
    }
    look_up_handler(v);
}

/* A task gate that an exception goes through loads cr3 with nothing to see: look before a store to a table is recorded. */
void notice_task_switch(unsigned vcpu)
{
    tlb_settle();
    if (qemu_reg(vcpu, REG_CR3) != vcpus[vcpu].cr3 || switched_tasks(vcpu)) {
        vcpus[vcpu].pending |= PENDING_MODE;
        resolve(vcpu);
    }
}

/* lidt and lgdt load their operand in two parts: the limit, then at + 2 the base. `data`: not null for lgdt. */
void on_table_register(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *data)
{
    struct vcpu *v = &vcpus[vcpu];
    unsigned shift = qemu_plugin_mem_size_shift(info);
    uint64_t through = 0, base;

    if (shift < 2) {
        return;
    }
    pthread_mutex_lock(&lock);
    if (v->pending && !closed) {
        resolve(vcpu);
    }
    base = physical_entry(translate(v, va, &through), 1u << shift);
    if (data) {
        v->gdt_va = base;
    } else {
        v->idt_va = base;
        v->idt_known = true;
        look_up_handler(v);
        /* The gate's page may stand in some vCPU's cache of pages to which stores do not matter. */
        outdate_store_caches();
    }
    pthread_mutex_unlock(&lock);
}
