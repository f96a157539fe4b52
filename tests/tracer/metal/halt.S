/* A directory and a leaf table, and nothing more to do. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000

        begin
        identity PT
        movl    $(PT + IDENTITY), PD
        movl    $0x345063, 0x23000 + 4 * 7
        paging  PD
        movl    $0x300067, PT + 0xc00
1:      hlt
        jmp     1b
        end
