/*
 * 64-bit code whose page-fault gate begins 8 bytes before the end of the address space and goes on at its start: a watchpoint that
 * QEMU refuses.
 */
#include "metal.h"
        .set    PML4, 0x20000
        .set    PDPT, 0x21000
        .set    PD, 0x22000
        .set    PT, 0x23000
        .set    GATE_PAGE, 0x50000
        begin
        movl    $(PDPT + IDENTITY), PML4
        movl    $(PDPT + IDENTITY), PML4 + 8 * 511
        movl    $(PD + IDENTITY), PDPT
        movl    $(PD + IDENTITY), PDPT + 8 * 511
        movl    $0xe3, PD
        movl    $(PT + IDENTITY), PD + 8 * 511
        movl    $(GATE_PAGE + IDENTITY), PT + 8 * 511
        movl    $0x30, %eax
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        movl    $0x100, %eax
        xorl    %edx, %edx
        wrmsr
        movl    $0x80000011, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $in_long_mode
        .code64
in_long_mode:
        lidt    idt_pointer(%rip)
        movq    $0x60063, PT + 8
        power_off
idt_pointer:
        .word   0xff
        .quad   -8 - 14 * 16
        end
