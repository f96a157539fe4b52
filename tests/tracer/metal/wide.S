/* 64-bit code that stores by instructions that came after SSE2, on a processor that has them (-cpu max): wide.events lists what. */
#include "metal.h"
        .set    PML4, 0x20000
        .set    PDPT, 0x21000
        .set    PD, 0x22000
        .set    LEAF, 0x30000
        .set    NEXT, 0x31000
        begin
        movl    $(PDPT + IDENTITY), PML4
        movl    $(PD + IDENTITY), PDPT
        movl    $0xe3, PD
        movl    $(LEAF + IDENTITY), PD + 8
        movl    $(NEXT + IDENTITY), PD + 16
        movl    $0x50230, %eax          /* PAE, PSE, SSE, XSAVE, wrfsbase */
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        movl    $0x100, %eax
        xorl    %edx, %edx
        wrmsr
        movl    $0x80000011, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $in_long_mode
        .code64
in_long_mode:
        xorl    %ecx, %ecx
        movl    $7, %eax                /* x87, SSE, AVX */
        xsetbv
        fninit
        vmovdqu pattern(%rip), %ymm0
        vmovdqu fours(%rip), %xmm1
        vmovdqu eights(%rip), %ymm2

/* 32 bytes, aligned and not, across pages; parts of it. */
        vmovdqu %ymm0, LEAF + 0x008
        vmovdqa %ymm0, LEAF + 0x040
        vmovntdq %ymm0, LEAF + 0x060
        vmovdqu %ymm0, NEXT - 20
        vmovdqu %ymm0, NEXT - 13
        vmovdqu %ymm0, LEAF - 9
        vmovups %xmm0, LEAF + 0x080
        vextracti128 $1, %ymm0, LEAF + 0x090
        vmaskmovps %xmm0, %xmm1, LEAF + 0x0a0
        vpmaskmovq %ymm0, %ymm2, LEAF + 0x0c0
        pextrb  $1, %xmm0, LEAF + 0x0e1
        pextrw  $1, %xmm0, LEAF + 0x0e8
        pextrd  $1, %xmm0, LEAF + 0x0f0
        pextrq  $1, %xmm0, LEAF + 0x0f8
        extractps $2, %xmm0, LEAF + 0x100

/* Bytes in the other order, bases without wrmsr, a port. */
        movl    $0x60102030, %eax
        movbe   %ax, LEAF + 0x108
        movbe   %eax, LEAF + 0x110
        movbe   %rax, LEAF + 0x118
        movl    $(LEAF + 0x100), %ebx
        wrfsbase %rbx
        movl    $0x81060, %eax
        movq    %rax, %fs:0x20
        movl    $(LEAF - 0x1000), %ebx
        wrgsbase %rbx
        movl    %eax, %gs:0x1128
        movb    $0x50, %al
        outb    %al, $0x70              /* a byte of the battery-backed memory */
        movb    $0x62, %al
        outb    %al, $0x71
        movl    $0x71, %edx
        movl    $(LEAF + 0x130), %edi
        insb

/* The whole state. */
        movl    $7, %eax
        xorl    %edx, %edx
        xsave   LEAF + 0x800
        movl    $0x91060, LEAF + 0x138  /* elsewhere, so that the two can be told apart */
        movl    $(LEAF + 0x800), %edi
        xorl    %eax, %eax
        movl    $256, %ecx
        rep stosq
        power_off

        .balign 8
pattern:
        .quad   0x1122330060, 0x2233440060, 0x3344550060, 0x4455660060
fours:  .long   0x80000000, 0, 0x80000000, 0
eights: .quad   1 << 63, 0, 0, 1 << 63
        end
