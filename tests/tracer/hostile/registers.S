/* Loads of cr3, a hundred thousand of them, garbage in every bit; then roots that are not there, without paging. */
#include "../metal/metal.h"
        .set    PD, 0x20000
        .set    PT, 0x22000

        begin
        movl    $0xdeadbeef, %eax
        movl    $1000, %ecx
1:      imull   $1103515245, %eax, %eax
        addl    $12345, %eax
        movl    %eax, %cr3
        loop    1b
        identity PT
        movl    $(PT + IDENTITY), PD
        paging  PD
        movl    $50000, %ecx
        movl    $0xffffffff, %ebx
1:      movl    $PD, %eax
        movl    %eax, %cr3
        movl    $(PD + 0xfff), %eax
        movl    %eax, %cr3
        loop    1b
        power_off
        end
