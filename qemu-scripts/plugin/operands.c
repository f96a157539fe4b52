/*
 * What an instruction does to memory, as far as its bytes tell for certain (Intel SDM volume 2, appendix A): loads only, plain
 * stores only, or anything. It saves callbacks, and questions within them; what is not listed here is anything.
 */
#include "shadowtrace.h"

/* By modrm: a register operand stores nothing. */
static enum effect stores_to_operand(uint8_t modrm)
{
    return modrm >> 6 == 3 ? EFFECT_LOADS : EFFECT_STORES;
}

static enum effect changes_operand(uint8_t modrm)
{
    return modrm >> 6 == 3 ? EFFECT_LOADS : EFFECT_ANY;
}

static enum effect effect_0f(uint8_t opcode, uint8_t modrm)
{
    switch (opcode) {
    case 0x1f:                                                  /* nop */
    case 0x31: case 0xa2:                                       /* rdtsc, cpuid */
    case 0xa3: case 0xaf:                                       /* bt, imul */
    case 0xb6: case 0xb7: case 0xbe: case 0xbf:                 /* movzx, movsx */
        return EFFECT_LOADS;
    default:
        break;
    }
    switch (opcode >> 4) {
    case 0x4: case 0x8:                                         /* cmov, jcc */
        return EFFECT_LOADS;
    case 0x9:                                                   /* setcc */
        return stores_to_operand(modrm);
    default:
        return EFFECT_ANY;
    }
}

/* The eight operations of arithmetic: each in six forms, the second half of which has the register as its target. */
static enum effect effect_arithmetic(uint8_t opcode, uint8_t modrm)
{
    if ((opcode & 7) >= 6) {
        return EFFECT_ANY; /* segment registers, prefixes, decimal */
    }
    return (opcode & 7) >= 2 || opcode >> 3 == 7 ? EFFECT_LOADS : changes_operand(modrm);
}

static enum effect effect_group(uint8_t opcode, uint8_t modrm)
{
    uint8_t reg = modrm >> 3 & 7;

    switch (opcode) {
    case 0x80: case 0x81: case 0x83:
        return reg == 7 ? EFFECT_LOADS : changes_operand(modrm); /* cmp */
    case 0xc6: case 0xc7:
        return reg == 0 ? stores_to_operand(modrm) : EFFECT_ANY; /* mov */
    case 0xf6: case 0xf7:
        return reg == 2 || reg == 3 ? changes_operand(modrm) : EFFECT_LOADS; /* not, neg */
    case 0xfe: case 0xff:
        if (reg == 4 && opcode == 0xff) {
            return EFFECT_LOADS; /* jmp */
        }
        return reg < 2 ? changes_operand(modrm) : EFFECT_ANY;
    default:
        return changes_operand(modrm); /* shifts */
    }
}

enum effect effect_of(const uint8_t *bytes, size_t size)
{
    size_t at = prefix_length(bytes, size);
    uint8_t opcode = bytes[at], modrm = at + 1 < size ? bytes[at + 1] : 0;

    for (size_t i = 0; i < at; i++) {
        if (bytes[i] == 0xf0) {
            return EFFECT_ANY; /* lock */
        }
    }
    if (opcode == 0x0f) {
        return at + 1 < size ? effect_0f(modrm, at + 2 < size ? bytes[at + 2] : 0) : EFFECT_ANY;
    }
    if (opcode < 0x40) {
        return effect_arithmetic(opcode, modrm);
    }
    switch (opcode) {
    case 0x50: case 0x51: case 0x52: case 0x53: case 0x54: case 0x55: case 0x56: case 0x57:
    case 0x68: case 0x6a: case 0xe8:                            /* push, call */
    case 0xa2: case 0xa3: case 0xaa: case 0xab:                 /* mov to an absolute address, stos */
        return EFFECT_STORES;
    case 0x88: case 0x89:
        return stores_to_operand(modrm);
    case 0x69: case 0x6b: case 0x84: case 0x85: case 0x8a: case 0x8b: case 0x8d: case 0x90: case 0x98: case 0x99:
    case 0xa0: case 0xa1: case 0xa6: case 0xa7: case 0xa8: case 0xa9: case 0xac: case 0xad: case 0xae: case 0xaf:
    case 0xc2: case 0xc3: case 0xc9: case 0xe9: case 0xeb: case 0xf4: case 0xfa: case 0xfb: case 0xfc: case 0xfd:
        return EFFECT_LOADS;
    case 0x80: case 0x81: case 0x83: case 0xc0: case 0xc1: case 0xc6: case 0xc7: case 0xd0: case 0xd1: case 0xd2: case 0xd3:
    case 0xf6: case 0xf7: case 0xfe: case 0xff:
        return effect_group(opcode, modrm);
    default:
        /* inc, dec of 32-bit code; pop; jcc; mov of a constant to a register. */
        return opcode < 0x50 || (opcode >= 0x58 && opcode < 0x60) || opcode >> 4 == 0x7 || opcode >> 4 == 0xb ? EFFECT_LOADS : EFFECT_ANY;
    }
}

/* Whether an instruction that stores stores one byte. */
bool stores_a_byte(const uint8_t *bytes, size_t size)
{
    size_t at = prefix_length(bytes, size);
    uint8_t opcode, next, third;

    if (at + 3 > size) {
        return false;
    }
    opcode = bytes[at];
    next = bytes[at + 1];
    third = bytes[at + 2];
    switch (opcode) {
    case 0x0f:
        return next >> 4 == 0x9 || next == 0xb0 || next == 0xc0 || next == 0xf7 || /* setcc, cmpxchg, xadd, maskmovq and maskmovdqu */
               (next == 0x3a && third == 0x14);                                    /* pextrb */
    case 0xc4: /* vpextrb; vmaskmovdqu */
        return at + 3 < size && ((next & 0x1f) == 3 ? bytes[at + 3] == 0x14 : bytes[at + 3] == 0xf7);
    case 0xc5:
        return third == 0xf7;
    case 0xdf:
        return (next >> 3 & 7) == 6; /* fbstp */
    case 0x6c: case 0x80: case 0x86: case 0x88: case 0xa2: case 0xa4: case 0xaa:   /* ins; xchg, mov, movs, stos */
    case 0xc0: case 0xc6: case 0xd0: case 0xd2: case 0xf6: case 0xfe:
        return true;
    default:
        return opcode < 0x40 && (opcode & 7) == 0; /* arithmetic */
    }
}
