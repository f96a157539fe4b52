/* One instruction that stores to a table, run where it lies and through a second mapping 16 MiB above. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000

        begin
        identity PT
        movl    $(PT + IDENTITY), PD
        movl    $(PT + IDENTITY), PD + 4 * 4
        paging  PD
        call    store
        movl    $store, %eax
        addl    $0x1000000, %eax
        call    *%eax
        call    store
        power_off

store:
        movl    $0x12345067, PT + 0xc00
        ret
        end
