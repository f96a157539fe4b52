/* Records into the pipe to the recorder. A full pipe makes the guest wait: nothing is dropped while the recorder lives. */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shadowtrace.h"

#define BUFFER_RECORDS 2730u /* 64 KiB, what a pipe takes at once */

static struct record buffer[BUFFER_RECORDS];
static unsigned used;
static int fd = -1;
static struct control *control;
static uint32_t next_seq[MAX_VCPUS];

bool stream_open(int stream_fd, int control_fd, unsigned vcpus)
{
    if (vcpus > MAX_VCPUS) {
        return false;
    }
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, control_fd, 0);
    if (control == MAP_FAILED) {
        return false;
    }
    fd = stream_fd;
    control->magic = CONTROL_MAGIC;
    return true;
}

struct control *stream_control(void)
{
    return control;
}

void stream_flush(void)
{
    const char *at = (const char *)buffer;
    size_t left = used * sizeof *buffer;

    while (left && fd >= 0) {
        ssize_t done = write(fd, at, left);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done < 0) {
            /* The recorder is gone: what follows is lost to it, and counted for whoever looks. */
            control->dropped += left / sizeof *buffer;
            fd = -1;
            break;
        }
        at += done;
        left -= (size_t)done;
    }
    used = 0;
}

static void put(const struct record *record)
{
    if (used == BUFFER_RECORDS) {
        stream_flush();
    }
    buffer[used++] = *record;
}

/* One event and its side records. The event's number among its vCPU's goes up even if the stream is gone: a gap shows. */
void stream_event(const struct record *event, const struct record *side, unsigned sides)
{
    struct record numbered = *event;

    numbered.seq = next_seq[event->vcpu]++;
    control->events++;
    control->by_kind[event->kind & 7]++;
    if (fd < 0) {
        control->dropped++;
        return;
    }
    put(&numbered);
    for (unsigned i = 0; i < sides; i++) {
        put(&side[i]);
    }
}

void stream_close(void)
{
    stream_flush();
    if (fd >= 0) {
        close(fd);
        fd = -1;
    }
    control->closed = 1;
}
