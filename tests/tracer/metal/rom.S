/* An interrupt table that lies in ROM, as the pointer to it does; two page faults. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000
        begin
        identity PT
        movl    $(PT + IDENTITY), PD
        lidtl   idt_pointer
        paging  PD
        movl    $1f, %ebp
        movl    0x500000, %eax
1:      movl    $1f, %ebp
        movl    %eax, 0x500004
1:      power_off
handler:
        addl    $4, %esp
        movl    %ebp, (%esp)
        iret
idt_pointer:
        .word   15 * 8 - 1
        .long   idt
        .balign 8
idt:    .fill   14, 8, 0
        .word   handler - start, 8, 0x8e00, 0xf
        end
