/* A directory that is its own leaf table in every entry, two tables that link each other, and entries far outside RAM. */
#include "../metal/metal.h"
        .set    PD, 0x20000
        .set    PD_B, 0x21000
        .set    PT, 0x22000

        begin
        identity PT
        /* The directory: the leaf table, then itself, itself, the other one, and frames that are nowhere. */
        movl    $PD, %edi
        movl    $(PD + IDENTITY), %eax
        movl    $1024, %ecx
        rep stosl
        movl    $(PT + IDENTITY), PD
        movl    $(PD_B + IDENTITY), PD + 4 * 2
        movl    $0xfffff063, PD + 4 * 3
        movl    $0x70000063, PD + 4 * 4
        movl    $0x000a0063, PD + 4 * 5
        movl    $(PD + IDENTITY), PD_B
        movl    $(PD_B + IDENTITY), PD_B + 4
        movl    $(PT + IDENTITY), PD_B + 8
        paging  PD
        /* Through its own mapping at 4 MiB the directory is changed: an entry of each other kind and back. */
        movl    $200, %ecx
1:      movl    $(PD_B + IDENTITY), 0x420000 + 4 * 9
        movl    $0xffffffff, 0x420000 + 4 * 10
        movl    $(PD + IDENTITY), PD + 4 * 9
        movl    $0, PD + 4 * 10
        movl    $PD_B, %eax
        movl    $(PT + IDENTITY), PD_B
        movl    %eax, %cr3
        movl    $PD, %eax
        movl    %eax, %cr3
        loop    1b
        power_off
        end
