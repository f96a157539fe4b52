/* Two megabytes on the console: terminal escapes, NULs, bytes that are no text, and not one end of a line for the first. */
#include "../metal/metal.h"
        begin
        movl    $1000000, %ecx
1:      movb    $'A', %al
        call    send
        loop    1b
        movl    $20000, %ecx
2:      movl    $words, %esi
3:      lodsb
        call    send
        cmpl    $words_end, %esi
        jne     3b
        loop    2b
        power_off
send:
        movb    %al, %ah
        movw    $0x3fd, %dx
4:      inb     %dx, %al
        testb   $0x20, %al
        jz      4b
        movb    %ah, %al
        movw    $0x3f8, %dx
        outb    %al, %dx
        ret
words:
        .byte   0x1b
        .ascii  "]0;owned"
        .byte   7, 0x1b
        .ascii  "[2J"
        .byte   0, 0xff, 0xfe, 0x80
        .ascii  "'; DROP TABLE event; --"
        .byte   13, 10
words_end:
        end
