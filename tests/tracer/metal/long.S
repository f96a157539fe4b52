/*
 * 64-bit code that stores to live page tables in every way: long.events lists what is stored, in order.
 *
 * The first 2 MiB are one big page, through which all stores go. The two leaf tables LEAF and NEXT lie side by side between
 * two pages of data; what they map is never used, so that they may hold anything. Ring 3 has its own mapping of this code and of
 * LEAF, from USER on. Every entry that a walk goes through is accessed and dirty from the start: the processor changes none.
 */
#include "metal.h"
        .set    ROM, 0xf0000
        .set    PML4, 0x20000
        .set    PDPT, 0x21000
        .set    PD, 0x22000
        .set    USER_TABLE, 0x23000
        .set    ROOT_2, 0x24000
        .set    NEW, 0x25000
        .set    DATA, 0x2f000
        .set    LEAF, 0x30000
        .set    NEXT, 0x31000
        .set    BEHIND, 0x32000
        .set    USER, 0x800000
        .set    RING_0, 0x67             /* what a walk of either ring may go through, accessed and dirty */
        .set    STAR, 0xc0000081
        .set    LSTAR, 0xc0000082
        .set    FS_BASE, 0xc0000100
        .set    GS_BASE, 0xc0000101
        .set    EFER, 0xc0000080

/* A model-specific register, its value below 4 GiB. */
.macro write_msr number, low, high=0
        movl    $\number, %ecx
        movl    $\low, %eax
        movl    $\high, %edx
        wrmsr
.endm

/* Four stores of rax, which counts, by one instruction: each so many bytes behind the last. */
.macro four_overlapping place, apart
        movl    $(\place), %edi
        movl    $4, %ecx
1:      movq    %rax, (%rdi)
        incq    %rax
        addq    $\apart, %rdi
        loop    1b
.endm

        begin
        movl    $(PDPT + RING_0), PML4
        movl    $(PDPT + RING_0), ROOT_2
        movl    $(PD + RING_0), PDPT
        movl    $0xe3, PD
        movl    $(LEAF + IDENTITY), PD + 8
        movl    $(NEXT + IDENTITY), PD + 16
        movl    $(USER_TABLE + RING_0), PD + 32
        movl    $USER_TABLE, %edi
        movl    $(ROM + RING_0), %eax
1:      movl    %eax, (%edi)
        addl    $8, %edi
        addl    $0x1000, %eax
        cmpl    $(ROM + 0x10000 + RING_0), %eax
        jne     1b
        movl    $(LEAF + RING_0), USER_TABLE + 8 * 16

        movl    $0x230, %eax            /* PAE, PSE, SSE */
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        write_msr EFER, 0x101           /* LME, SCE */
        movl    $0x80000011, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $in_long_mode

        .code64
in_long_mode:
        lgdt    gdt64_pointer(%rip)
        movq    $0x7000, %rsp

/* Sizes. */
        movabsq $0x0000001122334067, %rax
        movb    %al, LEAF + 0x000
        movb    %ah, LEAF + 0x001
        movw    %ax, LEAF + 0x008
        movl    %eax, LEAF + 0x010
        movq    %rax, LEAF + 0x018
        movl    $(LEAF + 0x20), %ebx
        movq    %rax, (%rbx)
        movabsq %rax, LEAF + 0x28
        movl    $0x55667063, %r9d
        movl    $(LEAF - 0x70), %r10d
        movl    $0x14, %r11d
        movl    %r9d, (%r10, %r11, 8)

/* Constants. */
        movb    $0x61, LEAF + 0x040
        movw    $0x1062, LEAF + 0x048
        movl    $0x12345060, LEAF + 0x050
        movq    $0x7ffff063, LEAF + 0x058
        movq    $-0x1000, LEAF + 0x060  /* its sign fills the upper half */

/* Unaligned, within an entry and across two. */
        movw    %ax, LEAF + 0x073
        movw    %ax, LEAF + 0x07f
        movl    %eax, LEAF + 0x086
        movq    %rax, LEAF + 0x094

/* Across pages: from table to table, from data to a table, from a table to data. */
        movw    %ax, NEXT - 1
        movl    %eax, NEXT - 2
        movq    %rax, NEXT - 4
        movq    %rax, NEXT - 7
        movq    %rax, LEAF - 4
        movq    %rax, LEAF - 1
        movl    %eax, LEAF - 3
        movq    %rax, BEHIND - 6
        movl    %eax, BEHIND - 1

/* From data that has been stored to already to a directory: nothing but that is to be told. The entry stays what it is. */
        movabsq $((PDPT + RING_0) << 32), %rdx
        movq    %rdx, PML4 - 0x100
        movq    %rdx, PML4 - 4
        movq    %rdx, PML4 - 4

/* One instruction, unaligned, that stores into what it stored just before. */
        four_overlapping LEAF + 0x604, 4
        four_overlapping LEAF + 0x641, 3
        subq    $8, %rax

/* One byte of many, the first of a page, twice. */
        movl    $0x80, %edx
        movd    %edx, %xmm0
        movd    %eax, %xmm1
        movl    $LEAF, %edi
        movl    $2, %ecx
1:      maskmovdqu %xmm0, %xmm1
        loop    1b

/* Strings; the last one downwards. */
        movabsq $0x0908070605040302, %rax
        movq    %rax, DATA
        movabsq $0x1918171615141312, %rax
        movq    %rax, DATA + 8
        movl    $DATA, %esi
        movl    $(LEAF + 0x100), %edi
        movsb
        movsw
        movsl
        movsq
        movl    $DATA, %esi
        movl    $(LEAF + 0x110), %edi
        movl    $2, %ecx
        rep movsq
        movl    $DATA, %esi
        movl    $3, %ecx
        rep movsb
        movl    $(LEAF + 0x130), %edi
        movabsq $0x00000022aabb0060, %rax
        stosb
        stosw
        stosl
        stosq
        movl    $(LEAF + 0x140), %edi
        movl    $3, %ecx
        rep stosq
        movl    $2, %ecx
        rep stosw
        xorl    %ecx, %ecx
        rep stosq                       /* none */
        movl    $(LEAF + 0x178), %edi
        movl    $2, %ecx
        std
        rep stosq
        cld

/* A stack that lies in a table. */
        movl    $(LEAF + 0x240), %esp
        pushq   %rax
        pushq   $0x63
        pushq   $-2
        pushw   %ax
        pushw   $0x1234
        leaq    LEAF + 0x220, %rsp
        pushq   DATA
        cmpl    %eax, %eax
        pushfq
        movl    $1f, %ebx
        movq    %rbx, DATA + 16
        jmp     calls
1:      ret
        .org    0x1000
calls:  call    1b                      /* goes on at 0xf1005 */
        call    *%rbx                   /* 0xf1007 */
        call    *DATA + 16              /* 0xf100e */
        movl    $0x4060, %ebp
        enter   $16, $0
        leave
        pushq   %fs
        movl    $far_end, DATA + 24
        movl    $0, DATA + 28
        movw    $0x18, DATA + 32
        jmp     far_call
far_end:
        lretq
        .org    0x1100
far_call:
        rex.w lcall *DATA + 24          /* goes on at 0xf1108 */
        popq    LEAF + 0x248            /* fs */
        movl    $0x7000, %esp
        pushq   $0x5060
        popq    LEAF + 0x250

/* Exchanges; those that fail to compare store what was there. */
        movabsq $0x0000000300200060, %rax
        movl    $0x6160, %ecx
        movl    $0x71c00060, %edx
        xchgb   %al, LEAF + 0x280
        xchgw   %cx, LEAF + 0x288
        xchgl   %edx, LEAF + 0x290
        movb    $0x60, %al
        xchgq   %rax, LEAF + 0x298
        movl    $7, %ecx
        xaddq   %rcx, LEAF + 0x298
        movl    $0x1000, %ecx
        lock xaddl %ecx, LEAF + 0x298
        movq    LEAF + 0x298, %rax
        movl    $0x31060, %ecx
        cmpxchgq %rcx, LEAF + 0x298
        movq    $-1, %rax
        cmpxchgq %rcx, LEAF + 0x298     /* fails */
        movl    $0x31060, %eax
        movl    $0x32060, %ecx
        lock cmpxchgl %ecx, LEAF + 0x298
        movl    $1, %eax
        lock cmpxchgw %cx, LEAF + 0x298 /* fails */
        xorl    %eax, %eax
        xorl    %edx, %edx
        movl    $0x33060, %ebx
        movl    $0x00000004, %ecx
        lock cmpxchg8b LEAF + 0x2a0
        movl    $1, %eax
        lock cmpxchg8b LEAF + 0x2a0     /* fails */
        movl    $1, %eax
        cmpxchg8b LEAF + 0x2a0          /* fails */
        xorl    %eax, %eax
        xorl    %edx, %edx
        movl    $0x34060, %ebx
        movl    $0x35060, %ecx
        lock cmpxchg16b LEAF + 0x2b0
        xorl    %eax, %eax
        lock cmpxchg16b LEAF + 0x2b0    /* fails */
        xorl    %eax, %eax
        cmpxchg16b LEAF + 0x2b0         /* fails */
        movl    $0x36060, %ebx
        cmpxchg16b LEAF + 0x2b0         /* the one that failed has loaded what it found */

/* Arithmetic and bits, on one entry after the other. What only looks stores nothing. */
        movl    $0x60, LEAF + 0x300
        lock orl $0x1000, LEAF + 0x300
        lock orl $0x1000, LEAF + 0x300  /* changes nothing, and is a store */
        orq     $0x2000, LEAF + 0x300
        lock andq $-0x1001, LEAF + 0x300
        andb    $0xe0, LEAF + 0x300
        lock addw $0x1000, LEAF + 0x300
        subl    $0x1000, LEAF + 0x300
        xorq    $0x10000, LEAF + 0x300
        stc
        adcl    $1, LEAF + 0x300
        stc
        sbbl    $0, LEAF + 0x300
        lock incq LEAF + 0x308
        decq    LEAF + 0x308
        decb    LEAF + 0x308
        notl    LEAF + 0x30c
        lock notl LEAF + 0x30c
        movq    $8, LEAF + 0x310
        negq    LEAF + 0x310
        lock negq LEAF + 0x310
        shlq    $4, LEAF + 0x310
        rolw    $4, LEAF + 0x310
        movl    $0x4000, %eax
        shldq   $16, %rax, LEAF + 0x310
        lock btsq $40, LEAF + 0x318
        btcl    $5, LEAF + 0x318
        lock btrq $40, LEAF + 0x318
        movl    $(64 * 2 + 6), %eax
        btsq    %rax, LEAF + 0x310      /* two entries up */
        xorl    %eax, %eax
        sete    LEAF + 0x321
        setne   LEAF + 0x322
        movl    $0x77000060, %eax
        movnti  %eax, LEAF + 0x328
        movnti  %rax, LEAF + 0x330
        cmpq    $0, LEAF + 0x300
        testb   $1, LEAF + 0x300
        btq     $3, LEAF + 0x300
        nopl    LEAF + 0x300
        prefetchw LEAF + 0x300
        clflush LEAF + 0x300
        movw    %ds, LEAF + 0x338
        sidt    LEAF + 0x34e
        str     LEAF + 0x358
        smsw    LEAF + 0x360

/* Relative to rip, to fs and gs, with 32-bit addresses. */
        movl    $0x41060, %eax
        movq    %rax, start - ROM + LEAF + 0x380(%rip)
        movl    $0x42060, start - ROM + LEAF + 0x388(%rip)
        write_msr FS_BASE, LEAF + 0x300
        write_msr GS_BASE, 0xffffe000, 0xffffffff
        movl    $0x43060, %edx
        movq    %rdx, %fs:0x90
        movl    $0x44060, %fs:0x98
        movl    $(LEAF + 0x23a0), %edi
        movq    %rdx, %gs:(%rdi)
        movabsq $0x1234000000000000 + LEAF + 0x3a8, %rdi
        movl    %edx, (%edi)
        movl    %edx, %fs:-LEAF + 8(%edi)
        movl    $0x7063, %eax
        movl    $(LEAF + 0x3b8), %edi
        addr32 stosq

/* At every level: what links and unlinks tables, whole and by parts. */
        movq    $(LEAF + IDENTITY), NEW
        movq    $(NEW + IDENTITY), PD + 0x80
        movq    $(LEAF + IDENTITY), NEW + 8
        movb    $0, PD + 0x80
        movb    $0x63, PD + 0x80
        lock btrq $0, PD + 0x80
        xorl    %eax, %eax
        xchgq   %rax, PD + 0x80
        movl    $(PD + RING_0), %eax
        movl    %eax, PDPT + 0x10
        movl    $0, PDPT + 0x14
        lock andb $0xfe, PDPT + 0x10
        movq    $0x40000000 + 0xe0, PDPT + 0x18
        pushq   $(PDPT + RING_0)
        popq    PML4 + 0x800
        movabsq $(PD + RING_0) << 32, %rax
        movq    %rax, PML4 + 0xffc      /* the other half into the next level's first entry, which has it */
        movw    $0, PML4 + 0x800

/* x87 and SSE, into the other leaf table. */
        fninit
        fld1
        fldpi
        fsts    NEXT + 0x100
        fstl    NEXT + 0x108
        fld     %st(0)
        fstpt   NEXT + 0x110
        fists   NEXT + 0x120
        fistl   NEXT + 0x128
        fld     %st(0)
        fistpll NEXT + 0x130
        fisttps NEXT + 0x138
        fld     %st(0)
        fbstp   NEXT + 0x140
        fnstcw  NEXT + 0x150
        fnclex
        fldz
        ftst                            /* all four condition codes are defined */
        fnstsw  NEXT + 0x158
        movabsq $0x0000005500600060, %rax
        movq    %rax, %xmm0
        movabsq $0x0000006600700060, %rax
        movq    %rax, %xmm1
        movdqa  %xmm0, %xmm2
        punpcklqdq %xmm1, %xmm2
        movups  %xmm2, NEXT + 0x184
        movaps  %xmm2, NEXT + 0x1a0
        movdqa  %xmm2, NEXT + 0x1b0
        movntdq %xmm2, NEXT + 0x1c0
        movntps %xmm2, NEXT + 0x1d0
        movq    %xmm1, NEXT + 0x1e0
        movd    %xmm1, NEXT + 0x1e8
        movss   %xmm0, NEXT + 0x1f0
        movsd   %xmm0, NEXT + 0x1f8
        movlps  %xmm2, NEXT + 0x200
        movhps  %xmm2, NEXT + 0x208
        stmxcsr NEXT + 0x210
        movdqu  %xmm2, NEXT - 12
        movdqu  %xmm2, NEXT - 7
        movdqu  %xmm2, LEAF - 3
        movabsq $0x8000800000800080, %rax
        movq    %rax, %xmm3
        movl    $(NEXT + 0x220), %edi
        maskmovdqu %xmm3, %xmm2
        fnstenv NEXT + 0x240
        fnsave  NEXT + 0x280
        frstor  NEXT + 0x280
        fxsave  NEXT + 0x400
        fninit
        movdq2q %xmm1, %mm0
        movq    %mm0, NEXT + 0x700
        movd    %mm0, NEXT + 0x708
        movntq  %mm0, NEXT + 0x710
        emms

/* A whole table, so that no entry stands for an address beyond what there is. */
        movl    $NEXT, %edi
        xorl    %eax, %eax
        movl    $512, %ecx
        rep stosq

/* INVLPG. */
        movabsq $0xffff800000345678, %rax
        movl    $0x1000, %ebx
        movabsq $0x5555000000400000, %r12
        movl    $0x1234, %r13d
        movl    $(1 << 20), %r14d
        invlpg  (%rax)
        invlpg  -8(%rax)
        invlpg  0x1000(%rax, %rbx, 8)
        invlpg  (%r13, %r14, 2)
        invlpg  0x10(%rsp)
        invlpg  (%r13)
        invlpg  (, %r14, 4)
        invlpg  0x7fff0000
        invlpg  -0x1000
        invlpg  start - ROM + 0x345678(%rip)
        invlpg  start - ROM - 0x1000(%rip)
        invlpg  (%r12d)
        invlpg  0x20(%r12d, %ebx, 2)
        invlpg  -0x500000(%r12d)
        invlpg  start - ROM + 0x456789(%eip)
        invlpg  %fs:(%rbx)
        invlpg  %gs:0x3000
        invlpg  %fs:(%r12d)
        invlpg  %ds:(%rbx)

/* Roots: the same value, the same root with other bits, the other one, and a store to the one that is not loaded. */
        movq    %cr3, %rax
        movq    %rax, %cr3
        movq    %rax, %cr3
        orq     $0x18, %rax
        movq    %rax, %cr3
        movl    $ROOT_2, %r8d
        movq    %r8, %cr3
        movq    $0x5060, PML4 + 0x810
        movq    $0x6060, ROOT_2 + 0x810
        movl    $PML4, %eax
        movq    %rax, %cr3

/* Ring 3, through its own mapping; back by syscall. */
        write_msr STAR, 0, 0x18
        write_msr LSTAR, back
        pushq   $0x2b
        pushq   $0x7000
        pushq   $2
        pushq   $0x33
        pushq   $(USER - ROM)
        movl    $in_ring_3, %eax
        addq    %rax, (%rsp)
        iretq
in_ring_3:
        movl    $0x71060, %eax
        movq    %rax, USER + 0x10400
        movl    $0x72060, %edx
        xchgl   %edx, USER + 0x10408
        leaq    USER + 0x10418, %rsp
        pushq   %rax
        movw    %ax, USER + 0x10421
        syscall
back:   movl    $0x7000, %esp
        movq    %rax, LEAF + 0x428

        power_off

        .balign 8
gdt64:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00af9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00cff3000000ffff
        .quad   0x00affb000000ffff
gdt64_end:
gdt64_pointer:
        .word   gdt64_end - gdt64 - 1
        .long   gdt64, 0
        end
