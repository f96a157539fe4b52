/* Accesses that cross pages, and what makes a touch one again: INVLPG, a cr3 load, a store to a table. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000
        .set    PT_HIGH, 0x23000

        begin
        identity PT
        movl    $(PT + IDENTITY), PD
        movl    $(PT_HIGH + IDENTITY), PD + 4
        movl    $(0x300000 + IDENTITY), PT_HIGH
        paging  PD
        movl    0x100ffe, %eax          /* two pages */
        movl    %eax, 0x102ffe
        movl    0x101000, %eax          /* nothing new */
        movl    0x101100, %eax
        invlpg  0x101000
        movl    0x100100, %eax          /* stays */
        movl    0x101200, %eax
        movl    0x400000, %eax
        movl    $(0x301000 + IDENTITY), PT_HIGH + 4
        movl    0x100200, %eax          /* through the other table */
        movl    0x400300, %eax
        movl    $PD, %ecx
        movl    %ecx, %cr3
        movl    0x100400, %eax
        movl    0x400500, %eax
        power_off
        end
