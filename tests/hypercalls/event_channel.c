/* libxenevtchn: the one channel that a process has from a domain that it pages, a FIFO.
 *
 * As with /dev/xen/evtchn, the descriptor is readable while an event is pending, and a port whose
 * event was taken has no more until it is unmasked. */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <xenevtchn.h>

#define LOCAL_PORT 5

struct xenevtchn_handle {
    int epoll;
    int fifo;       /* of the bound port, or -1 */
    uint32_t domid;
};

void hypercalls_notify(uint32_t domid);

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
    if (!machine_get())
        return NULL;
    int error = tally("xenevtchn_open", NULL);
    if (error) {
        machine_put();
        errno = error;
        return NULL;
    }
    xenevtchn_handle *xce = calloc(1, sizeof(*xce));
    xce->epoll = epoll_create1(EPOLL_CLOEXEC);
    xce->fifo = -1;
    return xce;
}

int xenevtchn_close(xenevtchn_handle *xce)
{
    if (xce) {
        close(xce->fifo);
        close(xce->epoll);
        free(xce);
        machine_put();
    }
    return 0;
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
    return xce->epoll;
}

/* Whether the port's events make the descriptor readable. */
static void listen_to(xenevtchn_handle *xce, int how, bool wanted)
{
    struct epoll_event event = {.events = wanted ? EPOLLIN : 0};

    epoll_ctl(xce->epoll, how, xce->fifo, &event);
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid,
                                                     evtchn_port_t remote_port)
{
    int error = tally("xenevtchn_bind_interdomain", NULL);
    struct guest *guest = guest_of(domid);

    if (!error && (!guest || !guest->domain->paging))
        error = guest ? EINVAL : ESRCH;
    if (!error && xce->fifo >= 0)
        error = refuse("a second xenevtchn_bind_interdomain");
    if (!error && (xce->fifo = open_fifo("events", domid)) < 0)
        error = errno;
    if (error) {
        errno = error;
        return -1;
    }
    xce->domid = domid;
    listen_to(xce, EPOLL_CTL_ADD, true);
    /* Xen says that there is something, since it may have been there before. */
    if (write(xce->fifo, "", 1) < 0)
        refuse("a first event");
    return LOCAL_PORT;
}

static int check(xenevtchn_handle *xce, evtchn_port_t port)
{
    if (xce->fifo >= 0 && port == LOCAL_PORT)
        return 0;
    errno = EINVAL;
    return -1;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
    if (check(xce, port))
        return -1;
    close(xce->fifo);
    xce->fifo = -1;
    return 0;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
    tally("xenevtchn_notify", NULL);
    if (check(xce, port))
        return -1;
    hypercalls_notify(xce->domid);
    return 0;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
    bool blocks = !(fcntl(xce->epoll, F_GETFL) & O_NONBLOCK);
    struct epoll_event event;
    uint8_t events[256];

    if (epoll_wait(xce->epoll, &event, 1, blocks ? -1 : 0) < 1) {
        errno = EAGAIN;
        return -1;
    }
    while (read(xce->fifo, events, sizeof(events)) == sizeof(events))
        ;
    listen_to(xce, EPOLL_CTL_MOD, false);
    return LOCAL_PORT;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
    if (check(xce, port))
        return -1;
    listen_to(xce, EPOLL_CTL_MOD, true);
    return 0;
}

/* Its parameters do not matter, so it has none. */
#define REFUSED(name) \
    int name##_refused(void) __asm__(#name); \
    int name##_refused(void) \
    { \
        errno = refuse("%s", #name); \
        return -1; \
    }

REFUSED(xenevtchn_bind_unbound_port)
REFUSED(xenevtchn_bind_virq)
