/* One leaf table in every entry of the directory: a million translations by two tables. It waits a while, and resets the machine. */
#include "../metal/metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000

        begin
        identity PT
        movl    $PD, %edi
        movl    $(PT + IDENTITY), %eax
        movl    $1024, %ecx
        rep stosl
        paging  PD
        movl    $1500000000, %ecx
1:      loop    1b
        movb    $0xfe, %al
        outb    %al, $0x64
2:      hlt
        jmp     2b
        end
