/*
 * Garbage in cr0, cr4, EFER and cr3, paging on and off in every mode that comes of it. QEMU lets each combination pass that a processor
 * refuses; only at a reserved bit of cr4 does it stand still for ever, so cr4 gets those that there are. One root serves each mode:
 * ROOT leads to NEXT, whose first entry leads to LAST, whose first leads to frame 0; and NEXT as a leaf table of two-level paging,
 * LAST as one of PAE paging and frame 0 as one of long mode map what is used where it is.
 */
#include "../metal/metal.h"
        .set    ROOT, 0x20000
        .set    NEXT, 0x21000
        .set    LAST, 0x22000
        .set    CR0_WP, 0x10000
        .set    CR4_KNOWN, 0x7ff
        .set    CR4_PAE, 0x20
        .set    CR4_PSE_PGE, 0x90
        .set    EFER, 0xc0000080
        .set    EFER_LMA, 0x400

/* The next number of a row that looks like chance, in %eax. */
.macro chance
        imull   $1103515245, %esi, %esi
        addl    $12345, %esi
        movl    %esi, %eax
        bswapl  %eax
.endm

/* Identity in entries of 8 bytes: the first 2 MiB. */
.macro identity_of_8 table
        movl    $\table, %edi
        movl    $IDENTITY, %eax
1:      stosl
        movl    $0, (%edi)
        addl    $4, %edi
        addl    $0x1000, %eax
        cmpl    $(0x200000 + IDENTITY), %eax
        jne     1b
.endm

.macro flip bits
        movl    %cr4, %eax
        xorl    $\bits, %eax
        movl    %eax, %cr4
.endm

        begin
        identity NEXT
        identity_of_8 LAST
        identity_of_8 0
        movl    $(LAST + IDENTITY), NEXT
        movl    $0, NEXT + 4
        /* Read-only, as a PDPTE has no bit for writing; so WP stays clear. */
        movl    $(NEXT + 1), ROOT
        movl    $0, ROOT + 4
        movl    $EFER, %ecx
        movl    $8000, %ebx
        movl    $0x2545f491, %esi
1:      chance
        xorl    %edx, %edx
        wrmsr
        chance
        andl    $CR4_KNOWN, %eax
        movl    %eax, %cr4
        chance
        movl    %eax, %cr3
        andl    $0x18, %eax
        orl     $ROOT, %eax
        movl    %eax, %cr3
        chance
        andl    $~CR0_WP, %eax
        movl    %eax, %cr0
        incl    0x5000
        invlpg  0x6000
        flip    CR4_PSE_PGE
        rdmsr
        testl   $EFER_LMA, %eax
        jnz     2f
        flip    CR4_PAE
        incl    0x5000
        flip    CR4_PAE
2:      movl    $0x11, %eax
        movl    %eax, %cr0
        xorl    %eax, %eax
        movl    %eax, %cr4
        xorl    %edx, %edx
        wrmsr
        decl    %ebx
        jnz     1b
        power_off
        end
