/* A store of 8 bytes, and of 4, across the end of one table into the next; both tables. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000
        .set    PT2, 0x23000
        begin
        identity PT
        movl    $(PT + IDENTITY), PD
        movl    $(PT2 + IDENTITY), PD + 4 * 4
        paging  PD
        movl    $0x11223067, %eax
        movl    %eax, PT2 - 2
        movl    %cr4, %eax
        orl     $0x200, %eax
        movl    %eax, %cr4
        movl    $0x55667063, 0x6000
        movl    $0x99aab063, 0x6004
        movq    0x6000, %xmm0
        movq    %xmm0, PT2 - 4
        movl    $0x345063, PT2 + 0x10
        power_off
        end
