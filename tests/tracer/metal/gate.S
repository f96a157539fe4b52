/* The fault handler's page mapped twice; the gate points first to the low, then to the high mapping. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000
        .set    IDT, 0x8000
        begin
        movl    $0x8000, %edi
        xorl    %eax, %eax
        movl    $0x400, %ecx
        rep stosl
        identity PT
        movl    $(PT + IDENTITY), PD
        movl    $(PT + IDENTITY), PD + 4 * 4
        movl    $handler, %eax
        call    set_gate
        movw    $0x7ff, 0x8800
        movl    $IDT, 0x8802
        lidtl   0x8800
        paging  PD
        movl    $1f, %ebp
        movl    0x500000, %eax
1:      movl    $handler + 0x1000000, %eax
        call    set_gate
        movl    $1f, %ebp
        movl    0x500004, %eax
1:      movl    $1f, %ebp
        movl    0x500008, %eax
1:      power_off
set_gate:
        movw    %ax, IDT + 14 * 8
        movw    $8, IDT + 14 * 8 + 2
        movw    $0x8e00, IDT + 14 * 8 + 4
        shrl    $16, %eax
        movw    %ax, IDT + 14 * 8 + 6
        ret
        .balign 64
handler:
        addl    $4, %esp
        movl    %ebp, (%esp)
        iret
        end
