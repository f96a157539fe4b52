/* Stores to a leaf table, 400 thousand, as fast as the guest can. */
#include "metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000

        begin
        identity PT
        movl    $(PT + IDENTITY), PD
        paging  PD
        movl    $400, %ebx
2:      movl    $(PT + 0xc00), %edi
        movl    $250, %ecx
3:      movl    %ebx, (%edi)
        movl    %ecx, (%edi)
        movl    %ebx, (%edi)
        movl    %ecx, (%edi)
        addl    $4, %edi
        loop    3b
        decl    %ebx
        jnz     2b
        power_off
        end
