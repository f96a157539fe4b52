/* A load, and a store to a table, that cross into a page which is not there until the fault's handler maps it. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000
        .set    PT_HIGH, 0x23000
        .set    TABLE, 0x24000
        .set    IDT, 0x8000
        begin
        identity PT
        movl    $(PT + IDENTITY), PD
        movl    $(PT_HIGH + IDENTITY), PD + 4
        movl    $(TABLE + IDENTITY), PD + 8
        movl    $(0x300000 + IDENTITY), PT_HIGH
        movl    $(TABLE + IDENTITY), PT_HIGH + 8
        movl    $handler, %eax
        fault_gate IDT
        load_idt IDT
        paging  PD
        movl    0x400ffe, %ebx
        movl    $(0x310000 + IDENTITY), %ebx
        movl    %ebx, 0x402ffe
        movl    %ebx, 0x402000
        power_off
        .balign 64
handler:
        addl    $4, %esp
        movl    %cr2, %eax
        movl    %eax, %ecx
        shrl    $12, %ecx
        andl    $0x3ff, %ecx
        andl    $0xff000, %eax
        addl    $(0x300000 + IDENTITY), %eax
        movl    %eax, PT_HIGH(, %ecx, 4)
        iret
        end
