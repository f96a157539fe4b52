/* More tables than anybody has: 24 directories whose every entry links a frame of its own, all over RAM, garbage or not. */
#include "../metal/metal.h"
        .set    PD, 0x200000
        .set    PT, 0x22000

        begin
        identity PT
        movl    $PD, %edi
        movl    $0x1000063, %eax
        movl    $(24 * 1024), %ecx
1:      stosl
        addl    $0x1000, %eax
        andl    $0x7ffffff, %eax
        orl     $0x63, %eax
        loop    1b
        movl    $PD, %ebx
        movl    $24, %ecx
1:      movl    $(PT + IDENTITY), (%ebx)
        addl    $0x1000, %ebx
        loop    1b
        paging  PD
        movl    $24, %ecx
        movl    $PD, %ebx
1:      movl    %ebx, %cr3
        addl    $0x1000, %ebx
        loop    1b
        power_off
        end
