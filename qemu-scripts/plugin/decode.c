/* The instructions that matter for paging, told by their bytes (Intel SDM volume 2, chapter 2 and appendix A). */
#include <string.h>

#include "shadowtrace.h"

struct prefixes {
    size_t length;
    uint8_t rex;
    bool address_size;
    int8_t segment; /* 4 fs, 5 gs, else -1: flat */
};

static struct prefixes prefixes(const uint8_t *bytes, size_t size)
{
    struct prefixes found = {.segment = -1};

    for (; found.length + 1 < size; found.length++) {
        switch (bytes[found.length]) {
        case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x66: case 0xf0: case 0xf2: case 0xf3:
            break;
        case 0x64: case 0x65:
            found.segment = bytes[found.length] == 0x64 ? 4 : 5;
            break;
        case 0x67:
            found.address_size = true;
            break;
        default:
            /* In 32-bit code 40..4f is an instruction of its own, so one with more bytes behind it is REX. */
            if ((bytes[found.length] & 0xf0) != 0x40) {
                return found;
            }
            found.rex = bytes[found.length];
        }
    }
    return found;
}

size_t prefix_length(const uint8_t *bytes, size_t size)
{
    return prefixes(bytes, size).length;
}

/* A memory operand of 32-bit or 64-bit addressing, its modrm byte at `bytes`. */
static void decode_operand(const uint8_t *bytes, size_t size, const struct prefixes *prefix, struct operand *operand)
{
    uint8_t mod = bytes[0] >> 6, rm = bytes[0] & 7;
    size_t at = 1;
    int32_t wide = 0;

    operand->index = -1;
    operand->base = (int8_t)(rm | (prefix->rex & 1) << 3);
    operand->segment = prefix->segment;
    operand->address32 = prefix->address_size;
    if (rm == 4 && at < size) {
        uint8_t sib = bytes[at++];
        operand->scale_shift = (int8_t)(sib >> 6);
        operand->base = (int8_t)((sib & 7) | (prefix->rex & 1) << 3);
        operand->index = (int8_t)((sib >> 3 & 7) | (prefix->rex >> 1 & 1) << 3);
        if (operand->index == 4) {
            operand->index = -1;
        }
        rm = sib & 7;
        if (mod == 0 && rm == 5) {
            operand->base = -1;
        }
    } else if (mod == 0 && rm == 5) {
        operand->base = -2;
    }
    if (mod == 1 && at < size) {
        operand->displacement = (int8_t)bytes[at];
    } else if ((mod == 2 || operand->base < 0) && at + 4 <= size) {
        memcpy(&wide, bytes + at, 4);
        operand->displacement = wide;
    }
}

static enum insn_kind decode_group7(const uint8_t *bytes, size_t size, const struct prefixes *prefix, uint64_t next,
                                    struct operand *operand)
{
    uint8_t reg = bytes[0] >> 3 & 7;

    if (reg == 6) {
        return INSN_MODE; /* lmsw */
    }
    if (bytes[0] >> 6 == 3) {
        return bytes[0] == 0xda ? INSN_TASK : bytes[0] == 0xdf ? INSN_MODE : INSN_PLAIN; /* vmload, invlpga */
    }
    if (reg == 2 || reg == 3) {
        return reg == 2 ? INSN_LGDT : INSN_LIDT;
    }
    if (reg == 7) {
        memset(operand, 0, sizeof *operand);
        operand->next_va = next;
        decode_operand(bytes, size, prefix, operand);
        return INSN_INVLPG;
    }
    return INSN_PLAIN;
}

static enum insn_kind decode_0f(const uint8_t *bytes, size_t size, const struct prefixes *prefix, uint64_t next,
                                struct operand *operand)
{
    uint8_t control_register = size > 1 ? (bytes[1] >> 3 & 7) | (prefix->rex >> 2 & 1) << 3 : 0;

    switch (bytes[0]) {
    case 0x00:
        return size > 1 && (bytes[1] >> 3 & 7) == 3 ? INSN_TASK : INSN_PLAIN; /* ltr */
    case 0x01:
        return size > 1 ? decode_group7(bytes + 1, size - 1, prefix, next, operand) : INSN_PLAIN;
    case 0x20:
        return control_register == 2 ? INSN_READ_CR2 : INSN_PLAIN;
    case 0x22:
        if (control_register == 3) {
            return INSN_CR3;
        }
        return control_register == 0 || control_register == 4 ? INSN_MODE : INSN_PLAIN;
    case 0x30: /* wrmsr */
        return INSN_MODE;
    case 0xaa: /* rsm */
        return INSN_TASK;
    default:
        return INSN_PLAIN;
    }
}

/* Whether an INVLPG may end where these bytes end. */
bool may_end_in_invlpg(const uint8_t *bytes, size_t size)
{
    for (size_t at = 0; at + 3 <= size; at++) {
        if (bytes[at] == 0x0f && bytes[at + 1] == 0x01 && (bytes[at + 2] >> 3 & 7) == 7 && bytes[at + 2] >> 6 != 3) {
            return true;
        }
    }
    return false;
}

enum insn_kind decode(const uint8_t *bytes, size_t size, uint64_t va, struct operand *operand)
{
    struct prefixes prefix = prefixes(bytes, size);
    const uint8_t *at = bytes + prefix.length;
    size_t left = size - prefix.length;

    switch (at[0]) {
    case 0x0f:
        return left > 1 ? decode_0f(at + 1, left - 1, &prefix, va + size, operand) : INSN_PLAIN;
    case 0xf4:
        return INSN_HALT;
    case 0x9a: case 0xea: case 0xca: case 0xcb:            /* far call, jmp, ret */
    case 0xcc: case 0xcd: case 0xce: case 0xf1: case 0xcf: /* int3, int, into, int1, iret */
        return INSN_FAR;
    case 0xff:
        return left > 1 && ((at[1] >> 3 & 7) == 3 || (at[1] >> 3 & 7) == 5) ? INSN_FAR : INSN_PLAIN;
    default:
        return INSN_PLAIN;
    }
}
