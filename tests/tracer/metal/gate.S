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
        load_idt IDT
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
        fault_gate IDT
        ret
        .balign 64
handler:
        addl    $4, %esp
        movl    %ebp, (%esp)
        iret
        end
