/* libxencall: hypercall buffers, and the dispatch of a call to its family. */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xen/version.h>
#include <xencall.h>
#include <xentoollog.h>

struct xencall_handle {
    int unused;
};

/* Allocated buffers: {start, bytes}. There are a handful at a time. */
#define MAX_BUFFERS 256
static struct {
    uint8_t *start;
    size_t bytes;
} buffers[MAX_BUFFERS];
static unsigned int nr_buffers;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *buffer_alloc(const char *name, size_t bytes)
{
    void *buffer = NULL;
    int error = tally(name, NULL);

    bytes = (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
    if (!error && !(buffer = aligned_alloc(PAGE_BYTES, bytes)))
        error = ENOMEM;
    if (error) {
        errno = error;
        return NULL;
    }
    memset(buffer, 0, bytes);
    pthread_mutex_lock(&lock);
    if (nr_buffers == MAX_BUFFERS) {
        fprintf(stderr, "hypercalls: %d hypercall buffers are held\n", MAX_BUFFERS);
        abort();
    }
    buffers[nr_buffers].start = buffer;
    buffers[nr_buffers++].bytes = bytes;
    pthread_mutex_unlock(&lock);
    __atomic_add_fetch(&machine->buffers_held, 1, __ATOMIC_RELAXED);
    return buffer;
}

static void buffer_free(void *buffer)
{
    bool found = false;

    if (!buffer)
        return;
    pthread_mutex_lock(&lock);
    for (unsigned int i = nr_buffers; i-- && !found;)
        if (buffers[i].start == buffer) {
            buffers[i] = buffers[--nr_buffers];
            found = true;
        }
    pthread_mutex_unlock(&lock);
    if (!found) {
        fprintf(stderr, "hypercalls: %p is freed, but is not a hypercall buffer\n", buffer);
        abort();
    }
    __atomic_sub_fetch(&machine->buffers_held, 1, __ATOMIC_RELAXED);
    free(buffer);
}

bool in_buffer(const void *start, size_t bytes, const char *what)
{
    const uint8_t *from = start;
    bool found = false;

    pthread_mutex_lock(&lock);
    for (unsigned int i = 0; i < nr_buffers && !found; i++) {
        size_t offset = from - buffers[i].start;

        found = from >= buffers[i].start && offset <= buffers[i].bytes &&
                bytes <= buffers[i].bytes - offset;
    }
    pthread_mutex_unlock(&lock);
    if (!found)
        fprintf(stderr, "hypercalls: %s, %zu bytes at %p, is not in a hypercall buffer: EFAULT\n",
                what, bytes, start);
    return found;
}

xencall_handle *xencall_open(struct xentoollog_logger *logger, unsigned open_flags)
{
    if (!machine_get())
        return NULL;
    int error = tally("xencall_open", NULL);
    if (error) {
        machine_put();
        errno = error;
        return NULL;
    }
    return calloc(1, sizeof(struct xencall_handle));
}

int xencall_close(xencall_handle *xcall)
{
    if (xcall) {
        machine_put();
        free(xcall);
    }
    return 0;
}

int xencall_fd(xencall_handle *xcall)
{
    return -1;
}

int xencall_buffers_never_fault(xencall_handle *xcall)
{
    return 1;
}

void *xencall_alloc_buffer_pages(xencall_handle *xcall, size_t nr_pages)
{
    return buffer_alloc("xencall_alloc_buffer_pages", nr_pages * PAGE_BYTES);
}

void xencall_free_buffer_pages(xencall_handle *xcall, void *p, size_t nr_pages)
{
    buffer_free(p);
}

void *xencall_alloc_buffer(xencall_handle *xcall, size_t size)
{
    return buffer_alloc("xencall_alloc_buffer", size ? size : 1);
}

void xencall_free_buffer(xencall_handle *xcall, void *p)
{
    buffer_free(p);
}

static long do_xen_version(unsigned int command, void *argument)
{
    int error;

    if (command != XENVER_version)
        return -refuse("XENVER %u", command);
    error = tally("XENVER_version", NULL);
    return error ? -error : (long)machine->version;
}

static long dispatch(uint64_t op, const uint64_t arguments[5]);

/* libxenctrl makes each memory_op a multicall of one, to get a result wider than an int. */
static long do_multicall(struct multicall_entry *calls, uint64_t n)
{
    if (!in_buffer(calls, n * sizeof(*calls), "a multicall's list"))
        return -EFAULT;
    if (n > 1)
        tally("multicall", NULL);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t arguments[5];

        for (int a = 0; a < 5; a++)
            arguments[a] = calls[i].args[a];
        long result = dispatch(calls[i].op, arguments);
        /* As a debug build of Xen does: only the result may be relied on. */
        memset(&calls[i], 0xaa, sizeof(calls[i]));
        calls[i].result = result;
    }
    return 0;
}

static long dispatch(uint64_t op, const uint64_t arguments[5])
{
    switch (op) {
    case __HYPERVISOR_xen_version:
        return do_xen_version(arguments[0], (void *)arguments[1]);
    case __HYPERVISOR_multicall:
        return do_multicall((void *)arguments[0], arguments[1]);
    case __HYPERVISOR_domctl:
        return do_domctl((void *)arguments[0]);
    case __HYPERVISOR_sysctl:
        return do_sysctl((void *)arguments[0]);
    case __HYPERVISOR_memory_op:
        return do_memory_op(arguments[0], (void *)arguments[1]);
    case __HYPERVISOR_hvm_op:
        return do_hvm_op(arguments[0], (void *)arguments[1]);
    default:
        return -refuse("hypercall %lu", (unsigned long)op);
    }
}

static long call(uint64_t op, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e)
{
    const uint64_t arguments[5] = {a, b, c, d, e};
    long result = dispatch(op, arguments);

    if (result >= 0)
        return result;
    errno = -result;
    return -1;
}

int xencall0(xencall_handle *xcall, unsigned int op)
{
    return call(op, 0, 0, 0, 0, 0);
}

int xencall1(xencall_handle *xcall, unsigned int op, uint64_t arg1)
{
    return call(op, arg1, 0, 0, 0, 0);
}

int xencall2(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2)
{
    return call(op, arg1, arg2, 0, 0, 0);
}

long xencall2L(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2)
{
    return call(op, arg1, arg2, 0, 0, 0);
}

int xencall3(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2, uint64_t arg3)
{
    return call(op, arg1, arg2, arg3, 0, 0);
}

int xencall4(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2, uint64_t arg3,
             uint64_t arg4)
{
    return call(op, arg1, arg2, arg3, arg4, 0);
}

int xencall5(xencall_handle *xcall, unsigned int op, uint64_t arg1, uint64_t arg2, uint64_t arg3,
             uint64_t arg4, uint64_t arg5)
{
    return call(op, arg1, arg2, arg3, arg4, arg5);
}
