/* 100,700 lines on the console. */
#include "../metal/metal.h"
        begin
        movl    $100700, %ecx
1:      movb    $'x', %al
        call    send
        movb    $10, %al
        call    send
        loop    1b
        power_off
send:
        movb    %al, %ah
        movw    $0x3fd, %dx
2:      inb     %dx, %al
        testb   $0x20, %al
        jz      2b
        movb    %ah, %al
        movw    $0x3f8, %dx
        outb    %al, %dx
        ret
        end
