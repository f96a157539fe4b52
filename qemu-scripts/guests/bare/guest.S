/*
 * A bare-metal guest whose every paging event is known: expect.json lists them.
 *
 * A BIOS of 64 KiB at 0xf0000. It goes through two-level paging (a directory that maps itself, a table used by two
 * directories, a 4 MiB page, stores of every size and kind into tables, task switches that load cr3, a page-fault handler
 * that is replaced in place), PAE (a pointer that changes between two loads) and long mode, and ends by port 0xf4.
 *
 * Physical memory: stack below 0x7000, IDT 0x8000, GDT 0x9000, task states 0x9800 and 0x9900, tables from 0x20000 on.
 */
        .set    IDT, 0x8000
        .set    GDT, 0x9000
        .set    TSS_A, 0x9800
        .set    TSS_B, 0x9900
        .set    PD_A, 0x20000
        .set    PD_B, 0x21000
        .set    PT, 0x22000
        .set    PT_NEW, 0x23000
        .set    PAE_PDPT, 0x24000
        .set    PAE_PD, 0x25000
        .set    PAE_PD2, 0x26000
        .set    PML4, 0x27000
        .set    LONG_PDPT, 0x28000

        .text
        .code16
start:
        cli
        movw    $0xf000, %ax
        movw    %ax, %ds
        xorw    %ax, %ax
        movw    %ax, %es
        movw    $(gdt - start), %si
        movw    $GDT, %di
        movw    $(gdt_end - gdt), %cx
        cld
        rep movsb
        lgdtl   gdt_pointer - start
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .code32
protected:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7000, %esp

        /* Tables, all zero first. */
        movl    $PD_A, %edi
        xorl    %eax, %eax
        movl    $(0x9000 / 4), %ecx
        rep stosl
        movl    $PT, %edi
        movl    $0x63, %eax
1:      stosl
        addl    $0x1000, %eax
        cmpl    $0x400063, %eax
        jne     1b
        movl    $(PT + 0x63), PD_A
        movl    $0x4000e3, PD_A + 4 * 2
        movl    $(PD_A + 0x63), PD_A + 4 * 1023
        movl    $(PT + 0x63), PD_B

        /* Gate 14 and the descriptor table, with gates in RAM. */
        movl    $first_handler, %eax
        call    set_gate
        movw    $0x7ff, 0x8800
        movl    $IDT, 0x8802
        lidtl   0x8800

        /* Two-level paging, SSE allowed for a store of 16 bytes. */
        movl    $0x210, %eax
        movl    %eax, %cr4
        movl    $PD_A, %eax
        movl    %eax, %cr3
        movl    $0x80010031, %eax
        movl    %eax, %cr0

        /* Stores of every size and kind to the leaf table's entries from 0x300 on. */
        movl    $0x300067, PT + 0xc00
        movw    $0x0067, PT + 0xc04
        movb    $0x61, PT + 0xc00
        lock orl $4, PT + 0xc00
        movl    $0x302063, %eax
        xchgl   %eax, PT + 0xc08
        movl    $1, %eax
        lock xaddl %eax, PT + 0xc08
        movl    PT + 0xc10, %eax
        movl    PT + 0xc14, %edx
        movl    $0x304067, %ebx
        movl    $0x305067, %ecx
        lock cmpxchg8b PT + 0xc10
        movl    $0x306063, 0x6000
        movl    $0x307063, 0x6004
        movl    $0x308063, 0x6008
        movl    $0x309063, 0x600c
        movdqu  0x6000, %xmm0
        movdqu  %xmm0, PT + 0xc20
        movl    $(PT + 0xc40), %edi
        movl    $0x310063, %eax
        movl    $3, %ecx
        rep stosl

        /* Through the directory's own mapping: an entry of the table, then a new table into the directory itself. */
        movl    $0x320063, 0xffc00000 + 0xc80
        movl    $0x555063, PT_NEW
        movl    $(PT_NEW + 0x63), 0xfffff000 + 4 * 5
        movl    $0x556063, PT_NEW + 4

        invlpg  0x300000
        movl    $0x100000, %eax
        movl    $0x80000, %ebx
        invlpg  0x1000(%eax, %ebx, 4)

        /* Task switches: into the second directory, and back. */
        movl    $0x21000, TSS_B + 28
        movl    $second_task, TSS_B + 32
        movl    $2, TSS_B + 36
        movl    $0x6800, TSS_B + 56
        movl    $0x10, TSS_B + 72
        movl    $8, TSS_B + 76
        movl    $0x10, TSS_B + 80
        movl    $0x10, TSS_B + 84
        movl    $PD_A, TSS_A + 28
        movw    $0x18, %ax
        ltr     %ax
        ljmp    $0x20, $0

        /* Back. The same root once more, then two page faults, the handler replaced between them. */
        movl    $PD_A, %eax
        movl    %eax, %cr3
        movl    $1f, %ebp
        movl    $1, 0x500000
1:      movl    $second_handler, %eax
        call    set_gate
        movl    $1f, %ebp
        movl    0x500004, %eax
1:
        /* PAE: a load, a store to the directory, a new pointer, a load. */
        movl    $0x11, %eax
        movl    %eax, %cr0
        movl    $(PAE_PD + 1), PAE_PDPT
        movl    $0xe3, PAE_PD
        movl    $0x230, %eax
        movl    %eax, %cr4
        movl    $PAE_PDPT, %eax
        movl    %eax, %cr3
        movl    $0x80010011, %eax
        movl    %eax, %cr0
        movl    $0x2000e3, PAE_PD + 8
        movl    $(PAE_PD2 + 1), PAE_PDPT + 8
        movl    $PAE_PDPT, %eax
        movl    %eax, %cr3
        movl    $0x4000e3, PAE_PD2

        /* Long mode, on PAE's directory. */
        movl    $0x11, %eax
        movl    %eax, %cr0
        movl    $(LONG_PDPT + 0x63), PML4
        movl    $(PAE_PD + 0x63), LONG_PDPT
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $0x80010011, %eax
        movl    %eax, %cr0
        movl    $0x6000e3, PAE_PD + 24
        movl    $(LONG_PDPT + 0x63), PML4 + 8
        invlpg  0x600000
        movl    $0x11, %eax
        movl    %eax, %cr0

        xorl    %eax, %eax
        outb    %al, $0xf4
2:      hlt
        jmp     2b

second_task:
        movl    $0x330063, PT + 0xcc0
        ljmp    $0x18, $0

/* Gate 14 to the handler in eax. */
set_gate:
        movw    %ax, IDT + 14 * 8
        movw    $8, IDT + 14 * 8 + 2
        movw    $0x8e00, IDT + 14 * 8 + 4
        shrl    $16, %eax
        movw    %ax, IDT + 14 * 8 + 6
        ret

/* Go on at ebp. */
first_handler:
        movl    %cr2, %eax
        addl    $4, %esp
        movl    %ebp, (%esp)
        iret

second_handler:
        addl    $4, %esp
        movl    %ebp, (%esp)
        iret

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff
        .quad   0x00cf92000000ffff
        .quad   0x0000890098000067
        .quad   0x0000890099000067
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   GDT

        .org    0xfff0
        .code16
        ljmpw   $0xf000, $0
        .org    0x10000
