/* GNU Mach's bootstrap task: what a server would do to its address space, without a server.
 *
 * It stores to the pages of a stretch of zero-filled memory, gives them back to the kernel and begins again. Each store to a
 * new page is a page fault that the kernel answers with a page of its own; giving them back takes the entries out again.
 * Mach's traps are entered with a call through a gate, their number in eax, arguments on the stack behind a return address.
 */
        .set    PAGES, 256
        .set    ROUNDS, 58
        .set    MACH_TASK_SELF, -28
        .set    VM_ALLOCATE, -65
        .set    VM_DEALLOCATE, -66

        .text
        .globl  _start
_start:
        mov     $MACH_TASK_SELF, %eax
        call    trap
        mov     %eax, task
        mov     $ROUNDS, %esi

round:
        push    $1                      /* anywhere */
        push    $PAGES << 12
        push    $address
        push    task
        mov     $VM_ALLOCATE, %eax
        call    trap
        add     $16, %esp
        test    %eax, %eax
        jnz     stop

        mov     address, %edi
        mov     $PAGES, %ecx
page:   movl    %ecx, (%edi)
        add     $4096, %edi
        loop    page

        push    $PAGES << 12
        push    address
        push    task
        mov     $VM_DEALLOCATE, %eax
        call    trap
        add     $12, %esp
        dec     %esi
        jnz     round

stop:   jmp     stop

trap:   lcall   $7, $0
        ret

        .bss
        .align  4
task:   .long   0
address: .long  0
