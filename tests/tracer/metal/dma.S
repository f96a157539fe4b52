/*
 * A device writes into page tables: QEMU's fw_cfg copies the machine's UUID, 16 bytes, into the directory in use. The guest
 * halts, is woken by the timer, and uses and changes what it was given.
 */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000
        .set    PT_GIVEN, 0x23000
        .set    REQUEST, 0x5000
        .set    FW_CFG_UUID, 2
        .set    SELECT_AND_READ, 0x0a

        begin
        movl    $0x700, 0xfee00350      /* the APIC hands on what the PIC has */
        identity PT
        movl    $(PT + IDENTITY), PD
        movl    $0x345063, PT_GIVEN + 4 * 7
        paging  PD
        movl    $0x300067, PT + 0xc00

        /* Big-endian: control, length, address. */
        movl    $(SELECT_AND_READ << 24 | FW_CFG_UUID << 8), REQUEST
        movl    $(16 << 24), REQUEST + 4
        movl    $0, REQUEST + 8
        movl    $(PD + 0x100), %eax
        bswap   %eax
        movl    %eax, REQUEST + 12
        movl    $REQUEST, %eax
        bswap   %eax
        movw    $0x518, %dx
        outl    %eax, %dx

        /* Interrupts at 0x20; the timer alone, once in 10 ms. */
        lidtl   idt_pointer
        movl    $ports, %esi
        movl    $((ports_end - ports) / 2), %ecx
        xorl    %edx, %edx
1:      lodsb
        movb    %al, %dl
        lodsb
        outb    %al, %dx
        loop    1b
        sti
        hlt
        cli

        movl    0x10007000, %eax
        movl    $0x346063, PT_GIVEN + 4 * 8
        power_off

timer:
        pushl   %eax
        movb    $0x20, %al
        outb    %al, $0x20
        popl    %eax
        iret

ports:
        .byte   0x20, 0x11, 0x21, 0x20, 0x21, 0x04, 0x21, 0x01, 0x21, 0xfe
        .byte   0x43, 0x34, 0x40, 0x9c, 0x40, 0x2e
ports_end:
        .balign 8
idt:
        .fill   0x20, 8, 0
        .word   timer - start
        .word   8
        .word   0x8e00
        .word   0xf
idt_pointer:
        .word   0x21 * 8 - 1
        .long   idt
        end
