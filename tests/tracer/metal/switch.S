/*
 * Task switches that load the cr3 in force again, by every way there is, and far transfers that switch no task. INVLPGs say in
 * the trace where the guest is: MARK(1) and so on.
 */
#include "metal.h"
        .set    IDT, 0x8000
        .set    GDT, 0x9000
        .set    TASK_A, 0x9800
        .set    TASK_B, 0x9900
        .set    TASK_C, 0x9b00
        .set    PD_A, 0x20000
        .set    PD_B, 0x21000
        .set    PT, 0x22000

        .set    A, 0x18
        .set    B, 0x20
        .set    GATE_TO_B, 0x28
        .set    CALL_GATE, 0x30
        .set    C, 0x38

        .set    TSS_CR3, 28
        .set    TSS_EIP, 32

#define MARK(n) invlpg 0x300000 + (n) * 0x1000

        begin
        movl    $IDT, %edi
        xorl    %eax, %eax
        movl    $(0x2000 / 4), %ecx
        rep stosl
        movl    $gdt_in_ram, %esi
        movl    $GDT, %edi
        movl    $(gdt_in_ram_end - gdt_in_ram), %ecx
        rep movsb
        lgdtl   gdt_in_ram_pointer
        movl    $idt_in_ram, %esi
1:      movl    (%esi), %edi
        movl    4(%esi), %eax
        movl    %eax, IDT(, %edi, 8)
        movl    8(%esi), %eax
        movl    %eax, IDT + 4(, %edi, 8)
        addl    $12, %esi
        cmpl    $idt_in_ram_end, %esi
        jne     1b
        lidtl   idt_in_ram_pointer
        movl    $PD_A, TASK_A + TSS_CR3
        movl    $PD_A, TASK_B + TSS_CR3
        movl    $task_b, TASK_B + TSS_EIP
        movl    $2, TASK_B + 36
        movl    $0x6800, TASK_B + 56
        movl    $0x10, TASK_B + 72
        movl    $8, TASK_B + 76
        movl    $0x10, TASK_B + 80
        movl    $0x10, TASK_B + 84
        identity PT
        movl    $(PT + IDENTITY), PD_A
        movl    $(PT + IDENTITY), PD_B
        paging  PD_A

        /* The task register loaded: no switch. Far jumps, first with CR0.TS clear, then with it set. */
        clts
        movl    $A, %eax
        MARK(1)
        ltr     %ax
        ljmp    $B, $0
        MARK(3)
        ljmp    $B, $0
        MARK(5)

        /* Far calls that an iret comes back from. */
        clts
        lcall   $B, $0
        MARK(7)
        lcall   *to_b
        MARK(9)

        /* Through task gates: of the descriptor table, of the interrupt table. */
        ljmp    $GATE_TO_B, $0
        MARK(11)
        lcall   *to_gate
        MARK(13)
        int     $0x40
        MARK(15)

        /* No switches: jump, call, call gate, interrupt gate; a jump to the running task, which is refused. */
        ljmp    $8, $1f
1:      ljmp    *to_next
next:   lcall   $8, $near
        lcall   $CALL_GATE, $0
        int     $0x41
        movl    $1f, %ebp
        ljmp    $A, $0
1:      MARK(16)

        /* The task register loaded and tasks switched by an exception, within a block. */
        movl    $PD_A, TASK_C + TSS_CR3
        movl    $C, %eax
        ltr     %ax
        ud2
        MARK(17)
        ljmp    $B, $0
        MARK(19)

        /* Exceptions: noticed at the handler's iret, or where it loads cr3 itself. */
        ud2
        MARK(20)
        ud2
        MARK(21)

        /* To another cr3, and back. */
        movl    $PD_B, TASK_B + TSS_CR3
        ljmp    $B, $0
        MARK(23)

        /* With paging off: no load. */
        movl    %cr0, %eax
        andl    $0x7fffffff, %eax
        movl    %eax, %cr0
        ljmp    $B, $0
        MARK(25)
        power_off

near:   lret
interrupted:
        iret
refused:
        addl    $4, %esp
        movl    %ebp, (%esp)
        iret

task_b:
        MARK(2)
        ljmp    $A, $0
        MARK(4)
        ljmp    *to_a
        MARK(6)
        iret
        MARK(8)
        iret
        MARK(10)
        ljmp    $A, $0
        MARK(12)
        iret
        MARK(14)
        iret
        addl    $2, TASK_C + TSS_EIP
        iret
        MARK(18)
        ljmp    $C, $0
        addl    $2, TASK_C + TSS_EIP
        iret
        addl    $2, TASK_C + TSS_EIP
        movl    $PD_B, %eax
        movl    %eax, %cr3
        iret
        MARK(22)
        ljmp    $C, $0
        MARK(24)
        ljmp    $C, $0

        .balign 8
gdt_in_ram:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x0000890098000067
        .quad   0x0000890099000067
        .word   0, B, 0x8500, 0
        .word   near - start, 8, 0x8c00, 0xf
        .quad   0x000089009b000067
gdt_in_ram_end:
gdt_in_ram_pointer:
        .word   gdt_in_ram_end - gdt_in_ram - 1
        .long   GDT
idt_in_ram_pointer:
        .word   0x7ff
        .long   IDT
to_a:   .long   0
        .word   A
to_b:   .long   0
        .word   B
to_gate: .long  0
        .word   GATE_TO_B
to_next: .long  next
        .word   8
        /* Vector, gate. */
idt_in_ram:
        .long   6
        .word   0, B, 0x8500, 0
        .long   13
        .word   refused - start, 8, 0x8e00, 0xf
        .long   0x40
        .word   0, B, 0x8500, 0
        .long   0x41
        .word   interrupted - start, 8, 0x8e00, 0xf
idt_in_ram_end:
        end
