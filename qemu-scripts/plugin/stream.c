/*
 * Records into the pipe to the recorder. A full pipe makes the guest wait: nothing is dropped while the recorder lives -
 * unless that is asked for: then whole events are, until all that is held back could be written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shadowtrace.h"

#define BUFFER_BYTES (2730u * sizeof(struct record)) /* 64 KiB */

static unsigned char buffer[BUFFER_BYTES];
static size_t used; /* bytes: a full pipe may have taken a part of a record */
static int fd = -1;
static struct control *control;
static bool dropping;

bool stream_open(int stream_fd, int control_fd, bool drop_when_full)
{
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, control_fd, 0);
    if (control == MAP_FAILED) {
        return false;
    }
    fd = stream_fd;
    control->magic = CONTROL_MAGIC;
    return !drop_when_full || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0;
}

struct control *stream_control(void)
{
    return control;
}

/* Events that are in the buffer from some byte on, or from within. */
static unsigned events_from(size_t done)
{
    unsigned events = 0;

    /* The buffer ends with a whole record, and may begin within one. */
    for (size_t at = used; at > done; at -= at < sizeof(struct record) ? at : sizeof(struct record)) {
        size_t start = at < sizeof(struct record) ? 0 : at - sizeof(struct record);
        events += at - start == sizeof(struct record) && buffer[start] < REC_NOTE;
    }
    return events;
}

void stream_flush(void)
{
    size_t done = 0;

    while (done < used && fd >= 0) {
        ssize_t written = write(fd, buffer + done, used - done);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written < 0 && errno == EAGAIN) {
            break;
        }
        if (written < 0) {
            /* The recorder is gone: what follows is lost to it, and counted for whoever looks. */
            control->dropped += events_from(done);
            fd = -1;
            break;
        }
        done += (size_t)written;
    }
    if (fd < 0) {
        done = used;
    }
    memmove(buffer, buffer + done, used - done);
    used -= done;
}

static void put(const struct record *record)
{
    memcpy(buffer + used, record, sizeof *record);
    used += sizeof *record;
}

/* Whether there is room for so many records; a pipe that is full may have taken a part of what was there. */
static bool make_room(size_t records)
{
    if (dropping || used + records * sizeof(struct record) > sizeof buffer) {
        stream_flush();
        dropping = used != 0;
    }
    return fd >= 0 && !dropping;
}

/* One event and its side records. The event's number among its vCPU's goes up even if it is dropped: a gap shows. */
void stream_event(const struct record *event, const struct record *side, unsigned sides)
{
    struct record numbered = *event;

    numbered.seq = (uint32_t)control->by_vcpu[event->vcpu]++;
    control->events++;
    control->by_kind[event->kind & 7]++;
    if (!make_room(1 + sides)) {
        control->dropped++;
        return;
    }
    put(&numbered);
    for (unsigned i = 0; i < sides; i++) {
        put(&side[i]);
    }
}

/* What is no event: it has no number, and the recorder is told where one was dropped. */
void stream_note(unsigned vcpu, enum task_event what, uint64_t root, const void *data, size_t bytes)
{
    unsigned count = (unsigned)((bytes + 15) / 16);
    struct record record = {.kind = REC_NOTE, .vcpu = (uint8_t)vcpu, .flags = (uint16_t)what, .addr = root, .value = count};

    if (!make_room(1 + count)) {
        control->notes_dropped++;
        return;
    }
    put(&record);
    for (size_t at = 0; at < bytes; at += 16) {
        record = (struct record){.kind = REC_DATA, .vcpu = (uint8_t)vcpu};
        memcpy((uint8_t *)&record + offsetof(struct record, addr), (const uint8_t *)data + at, bytes - at < 16 ? bytes - at : 16);
        put(&record);
    }
}

/* The last records may wait for room: the guest does not run any more. */
void stream_close(void)
{
    if (fd >= 0) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    }
    stream_flush();
    if (fd >= 0) {
        close(fd);
        fd = -1;
    }
    control->closed = 1;
}
