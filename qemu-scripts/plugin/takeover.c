/*
 * Taking QEMU's TLB over. No QEMU says where it lies: it is told by what it must look like, and anything that is not as expected
 * means that callbacks do the work.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tables.h"
#include "tlb.h"

/* How many modes of access there are. Of five the second is the user's; of eight, 32-bit ones apart, the third and the fourth. */
#define FEW_MODES 5
#define FEW_USER_MODES 0x2u
#define MANY_MODES 8
#define MANY_USER_MODES 0xcu
/* For QEMU's own walks, of these. */
#define OWN_MODES 2

#define LEAST_ENTRIES 2u

/* QEMU's functions of an architecture, and what a class holds: as many as there may be. */
#define OPERATIONS 40u
#define CLASS_WORDS 128u

struct taken taken;
static void *operations[OPERATIONS];

/* Memory of QEMU's that may not be there. */
static bool peek(const void *from, void *to, size_t bytes)
{
    struct iovec here = {to, bytes}, there = {(void *)(uintptr_t)from, bytes};

    return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

static bool may_be_tlb(const struct tlb *tlb)
{
    uint64_t entries = (tlb->mask >> ENTRY_SHIFT) + 1;
    struct entry first;

    return entries >= LEAST_ENTRIES && !(entries & (entries - 1)) && tlb->mask == (entries - 1) << ENTRY_SHIFT &&
           !((uintptr_t)tlb->entries & 15) && peek(tlb->entries, &first, sizeof first);
}

/* The TLBs lie one behind the other in the vCPU's object; what QEMU fills in for a block that runs must be found there. */
static bool find_tlbs(void *cpu, size_t bytes, uint64_t running)
{
    uint64_t *words = cpu;
    size_t end = bytes / sizeof *words - MANY_MODES * sizeof *taken.tlbs / sizeof *words;
    int count = 0;

    for (size_t i = 0; i < end && !count; i++) {
        taken.tlbs = (struct tlb *)(words + i);
        while (count < MANY_MODES && may_be_tlb(taken.tlbs + count)) {
            count++;
        }
    }
    taken.modes = count - OWN_MODES;
    taken.user_modes = count == FEW_MODES ? FEW_USER_MODES : MANY_USER_MODES;
    return (count == FEW_MODES || count == MANY_MODES) && taken.fill(cpu, running, 0, TOUCH_FETCH, 0, true, 0) &&
           holds(find(running, 0), TOUCH_FETCH, running);
}

/*
 * Before the TLBs lies a description of each, in it the victims. After a flush nothing but they is full of ones, as many bytes: found
 * at each mode, the same way apart.
 */
static bool find_victims(uint8_t *cpu, int count)
{
    uint8_t *at = (uint8_t *)taken.tlbs, *last[MANY_MODES] = {NULL};
    size_t ones = 0, bytes = VICTIMS * sizeof(struct entry);
    int found = 0;

    while (at > cpu && found < count) {
        at--;
        ones = *at == 0xff ? ones + 1 : 0;
        if (ones == bytes) {
            last[found++] = at;
            ones = 0;
        }
    }
    if (found < count) {
        return false;
    }
    taken.first_victims = last[found - 1];
    taken.victims_apart = (size_t)(last[0] - last[1]);
    for (int i = 1; i < found; i++) {
        if ((size_t)(last[i - 1] - last[i]) != taken.victims_apart) {
            return false;
        }
    }
    return true;
}

/* Where QEMU has mapped the file of RAM. */
static uint64_t find_host_ram(int ram_fd)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    struct stat file;
    char line[512];
    uint64_t found = 0;

    if (!maps) {
        return 0;
    }
    while (fstat(ram_fd, &file) == 0 && fgets(line, sizeof line, maps)) {
        unsigned long long start, end, offset, inode;
        unsigned major, minor;
        if (sscanf(line, "%llx-%llx %*s %llx %x:%x %llu", &start, &end, &offset, &major, &minor, &inode) == 6 && inode == file.st_ino &&
            offset == 0 && end - start == (uint64_t)file.st_size && start != (uintptr_t)ram) {
            found = start;
        }
    }
    fclose(maps);
    return found;
}

/*
 * The place in the vCPU's class that points to the architecture's functions, which go into `operations` with ours among them.
 * Other structures lie before that one: it is the last that begins before the function.
 */
static void ***find_operations(void ***class, fill_function *instead)
{
    void ***found = NULL, *there[OPERATIONS];
    unsigned nearest = OPERATIONS;

    for (unsigned i = 0; i < CLASS_WORDS; i++) {
        for (unsigned n = 0; n < nearest && peek(class[i], there, sizeof there); n++) {
            if (there[n] == (void *)taken.fill) {
                found = &class[i];
                nearest = n;
                memcpy(operations, there, sizeof operations);
            }
        }
    }
    if (found) {
        operations[nearest] = (void *)instead;
    }
    return found;
}

/*
 * Have QEMU call `instead` where it would call its own function to fill the TLB. On the thread of the only vCPU, which is about
 * to run a block, at address `running`; false where anything is not as it must be.
 */
bool take_over(int ram_fd, uint64_t running, fill_function *instead)
{
    void *(*class_of)(void *object);
    void ***place;
    size_t bytes;

    taken.cpu = qemu_7_2_vcpu(&bytes);
    *(void **)&taken.fill = dlsym(RTLD_DEFAULT, "x86_cpu_tlb_fill");
    *(void **)&taken.flush = dlsym(RTLD_DEFAULT, "tlb_flush");
    *(void **)&taken.unwind = dlsym(RTLD_DEFAULT, "cpu_unwind_state_data");
    *(void **)&class_of = dlsym(RTLD_DEFAULT, "object_get_class");
    if (!taken.cpu || !taken.fill || !taken.flush || !taken.unwind || !class_of || !find_tlbs(taken.cpu, bytes, running)) {
        return false;
    }
    taken.flush(taken.cpu); /* nothing is filled in until ours is called */
    if (!find_victims(taken.cpu, taken.modes + OWN_MODES)) {
        return false;
    }
    taken.host_ram = find_host_ram(ram_fd);
    place = taken.host_ram ? find_operations(class_of(taken.cpu), instead) : NULL;
    if (!place) {
        return false;
    }
    *place = operations;
    return true;
}
