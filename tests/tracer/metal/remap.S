/* Pages that are stored to and neither loaded from nor run, many, and frames that change behind them. Status 3 where one is not as stored. */
#include "metal.h"
        .set    PDPT, 0x20000
        .set    PD, 0x21000
        .set    PT, 0x22000             /* two of them: 4 MiB */
        .set    PT_HIGH, 0x24000
        .set    APART, 0x400000         /* the same frames once more, and nothing may run there */
        .set    NX_HALF, 0x80000000

        begin
        movl    $PT, %edi
        movl    $IDENTITY, %eax
1:      movl    %eax, (%edi)
        movl    %eax, PT_HIGH - PT(%edi)
        movl    $NX_HALF, PT_HIGH - PT + 4(%edi)
        addl    $8, %edi
        addl    $0x1000, %eax
        cmpl    $(APART + IDENTITY), %eax
        jne     1b
        movl    $(PT + IDENTITY), PD
        movl    $(PT + 0x1000 + IDENTITY), PD + 8
        movl    $(PT_HIGH + IDENTITY), PD + 16
        movl    $(PT_HIGH + 0x1000 + IDENTITY), PD + 24
        movl    $(PD + 1), PDPT
        movl    $0xc0000080, %ecx       /* EFER.NXE */
        rdmsr
        orl     $0x800, %eax
        wrmsr
        movl    $0x20, %eax             /* CR4.PAE */
        movl    %eax, %cr4
        paging  PDPT
        movl    $0x100000, %edi
2:      movl    %edi, (%edi)
        movl    %edi, APART + 4(%edi)
        addl    $0x1000, %edi
        cmpl    $APART, %edi
        jne     2b
        movl    $0x100000, %esi
3:      cmpl    %esi, (%esi)
        jne     wrong
        cmpl    %esi, 4(%esi)
        jne     wrong
        addl    $0x1000, %esi
        cmpl    $APART, %esi
        jne     3b

        movl    %cr3, %eax
        movl    %eax, %cr3
        movl    $0x100000, %edi
        movl    $0x3ff000, %esi
4:      movl    %edi, APART + 8(%edi)   /* its own frame's */
        movl    %edi, %eax
        shrl    $12, %eax
        leal    IDENTITY(%esi), %edx
        movl    %edx, PT_HIGH(,%eax,8)
        invlpg  APART(%edi)
        movl    %edi, APART + 12(%edi)
        cmpl    %edi, 12(%esi)
        jne     wrong
        addl    $0x1000, %edi
        subl    $0x1000, %esi
        cmpl    $APART, %edi
        jne     4b
        power_off
wrong:
        movb    $1, %al
        outb    %al, $0xf4
        end
