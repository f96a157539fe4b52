/*
 * What the bare-metal guests of the tests share: a BIOS of 64 KiB at 0xf0000 that goes to protected mode, flat segments, stack
 * below 0x7000, RAM read and written at will; and ends by port 0xf4.
 */
#define IDENTITY 0x63           /* present, writable, accessed, dirty */

.macro begin
        .text
        .code16
start:
        cli
        lgdtl   %cs:gdt_pointer - start
        movl    $0x11, %eax
        movl    %eax, %cr0
        ljmpl   $8, $protected
        .code32
protected:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7000, %esp
        cld
.endm

/* Fill a leaf table of two-level paging: the first 4 MiB where they are. */
.macro identity table
        movl    $\table, %edi
        movl    $IDENTITY, %eax
1:      stosl
        addl    $0x1000, %eax
        cmpl    $(0x400000 + IDENTITY), %eax
        jne     1b
.endm

/* Two-level paging with the directory at `root`. */
.macro paging root
        movl    $\root, %eax
        movl    %eax, %cr3
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
.endm

/* Page faults go to the address in eax, which is lost: an interrupt gate. */
.macro fault_gate idt
        movw    %ax, \idt + 14 * 8
        movw    $8, \idt + 14 * 8 + 2
        movw    $0x8e00, \idt + 14 * 8 + 4
        shrl    $16, %eax
        movw    %ax, \idt + 14 * 8 + 6
.endm

/* Load an interrupt table in RAM. */
.macro load_idt idt
        movw    $0x7ff, 0x8800
        movl    $\idt, 0x8802
        lidtl   0x8800
.endm

.macro power_off
        xorl    %eax, %eax
        outb    %al, $0xf4
1:      hlt
        jmp     1b
.endm

.macro end
        .balign 8
/* Accessed already: the processor need not write into ROM. */
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00af9b000000ffff
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
        .org    0xfff0
        .code16
        ljmpw   $0xf000, $0
        .org    0x10000
.endm
