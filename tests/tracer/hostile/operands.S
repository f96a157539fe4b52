/* An INVLPG with its address in the instruction, written anew a hundred thousand times: each time another address; and in 64-bit code from rip. */
#include "../metal/metal.h"
        .set    CODE, 0x8000
        .set    POINTER, 0x9000
        .set    ROOT, 0x20000

        begin
        /* invlpg 0; ret */
        movl    $0x003d010f, CODE
        movl    $0xc3000000, CODE + 4
        movl    $100000, %ecx
        xorl    %eax, %eax
        movl    $CODE, %ebx
1:      movl    %eax, CODE + 3
        call    *%ebx
        addl    $0x1000, %eax
        loop    1b
        /* Descriptors in RAM, where the capture can read that code is 64-bit. Long mode: the first 2 MiB in one page. */
        movl    $gdt_pointer, %esi
        movl    $POINTER, %edi
        movsw
        movl    $(POINTER + 8), (%edi)
        movl    $gdt, %esi
        movl    $(POINTER + 8), %edi
        movl    $(gdt_end - gdt), %ecx
        rep movsb
        lgdtl   POINTER
        movl    $(ROOT + 0x1000 + IDENTITY), ROOT
        movl    $(ROOT + 0x2000 + IDENTITY), ROOT + 0x1000
        movl    $(0x80 + IDENTITY), ROOT + 0x2000
        movl    $0x20, %eax
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx
        xorl    %edx, %edx
        movl    $0x100, %eax
        wrmsr
        paging  ROOT
        ljmpl   $0x18, $long
        .code64
long:
        invlpg  start(%rip)
        invlpg  %fs:start + 0x1000(%rip)
        invlpg  CODE
        power_off
        end
