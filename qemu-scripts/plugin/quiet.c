/*
 * Moments at which the guest stands still, and the end: what is known goes into the pipe, and the tables are held against
 * memory. What differs came from a device, a debugger, or in a way that QEMU does not show.
 */
#define _GNU_SOURCE
#include <time.h>

#include "vcpu.h"

#define LOOK_EVERY_NS 10000000ull
/* Of the time that a guest with very many tables takes, looking may cost this part. */
#define LOOK_PART 20ull

static bool told_of_idle;

static uint64_t nanoseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* With the lock held: record what is in the tables and came from nowhere, unless that was asked a moment ago. */
static void look_for_foreign(bool at_once)
{
    static uint64_t next_look;
    uint64_t before = nanoseconds(), found, took;

    tlb_settle();
    if (!at_once && before < next_look) {
        return;
    }
    found = tables_foreign();
    if (found) {
        note_stored_tables(found);
    }
    took = (nanoseconds() - before) * LOOK_PART;
    next_look = before + (took > LOOK_EVERY_NS ? took : LOOK_EVERY_NS);
}

/* A vCPU that runs may have stored what its callback has not told yet. */
static bool all_stand_still(int but)
{
    for (unsigned i = 0; i < settings.vcpus; i++) {
        if ((int)i != but && vcpus[i].exists && !vcpus[i].idle) {
            return false;
        }
    }
    return true;
}

/* With the lock held: what is pending. A vCPU's own thread may ask for itself alone. */
static void settle(int own)
{
    tlb_settle();
    for (unsigned i = 0; i < settings.vcpus; i++) {
        if ((own < 0 || (unsigned)own == i) && vcpus[i].known && vcpus[i].pending) {
            resolve(i);
        }
    }
}

/* All vCPUs have stopped, or are about to go on: gdb may have written, or will. */
static void on_stopped(void)
{
    pthread_mutex_lock(&lock);
    if (!closed) {
        notice_every_access();
        settle(qemu_translating_vcpu());
        look_for_foreign(true);
        tlb_forget_all(); /* gdb's watchpoints drop pages */
        stream_flush();
    }
    pthread_mutex_unlock(&lock);
}

static void on_init(qemu_plugin_id_t id, unsigned vcpu)
{
    (void)id;
    vcpus[vcpu].exists = true;
}

static void on_exit_vcpu(qemu_plugin_id_t id, unsigned vcpu)
{
    (void)id;
    vcpus[vcpu].exists = false;
}

static void on_idle(qemu_plugin_id_t id, unsigned vcpu)
{
    (void)id;
    pthread_mutex_lock(&lock);
    if (!closed) {
        settle((int)vcpu);
        vcpus[vcpu].idle = told_of_idle = true;
        if (all_stand_still(-1)) {
            look_for_foreign(false);
        }
        stream_flush();
    }
    pthread_mutex_unlock(&lock);
}

/* It was woken: by a device, perhaps, that has written. */
static void on_resume(qemu_plugin_id_t id, unsigned vcpu)
{
    (void)id;
    pthread_mutex_lock(&lock);
    if (!closed && all_stand_still((int)vcpu)) {
        look_for_foreign(false);
    }
    vcpus[vcpu].idle = false;
    pthread_mutex_unlock(&lock);
}

/* Where all vCPUs share a thread (icount), QEMU tells of no idle ones. Time is no measure there: the same run must look alike. */
void on_halt(unsigned vcpu, void *data)
{
    (void)data;
    pthread_mutex_lock(&lock);
    if (!closed && !told_of_idle && all_stand_still((int)vcpu)) {
        look_for_foreign(true);
    }
    pthread_mutex_unlock(&lock);
}

static void on_exit_qemu(qemu_plugin_id_t id, void *data)
{
    int own = qemu_translating_vcpu();

    (void)id;
    (void)data;
    pthread_mutex_lock(&lock);
    if (!closed) {
        settle(own);
        if (all_stand_still(own)) {
            look_for_foreign(true);
        }
        closed = true;
        stream_close();
    }
    pthread_mutex_unlock(&lock);
}

/* What a quiet guest did must not wait in the buffer until it does more. */
static void *flush_now_and_then(void *data)
{
    const struct timespec pause = {.tv_nsec = 200 * 1000 * 1000};

    (void)data;
    for (bool done = false; !done;) {
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&lock);
        done = closed;
        if (!done) {
            notice_every_access();
            stream_flush();
        }
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

bool quiet_open(qemu_plugin_id_t id)
{
    pthread_t flusher;

    if (pthread_create(&flusher, NULL, flush_now_and_then, NULL) != 0) {
        return false;
    }
    pthread_detach(flusher);
    qemu_plugin_register_vcpu_init_cb(id, on_init);
    qemu_plugin_register_vcpu_exit_cb(id, on_exit_vcpu);
    qemu_plugin_register_vcpu_idle_cb(id, on_idle);
    qemu_plugin_register_vcpu_resume_cb(id, on_resume);
    qemu_plugin_register_atexit_cb(id, on_exit_qemu, NULL);
    qemu_on_stop(on_stopped);
    return true;
}
