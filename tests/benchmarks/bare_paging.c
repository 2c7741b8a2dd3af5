/* A pager that makes one hypercall for each operation on a page, and nothing else.
 *
 * bare_paging DOMID FIRST PAGES: has the pages from FIRST on evicted, and loads them again, twice: the
 * first time the stand-in's own memory is touched. Prints the nanoseconds of processor time that each
 * took altogether the second time. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/memory.h>
#include <xencall.h>
#include <xenctrl.h>

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return 1e9 * time.tv_sec + time.tv_nsec;
}

static void call(xencall_handle *xcall, xen_mem_paging_op_t *op, unsigned int what, uint64_t gfn)
{
    op->op = what;
    op->gfn = gfn;
    if (xencall2L(xcall, __HYPERVISOR_memory_op, XENMEM_paging_op, (uint64_t)op)) {
        perror("XENMEM_paging_op");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    uint32_t domid = atoi(argv[1]), port;
    uint64_t first = atoll(argv[2]), pages = atoll(argv[3]);
    xc_interface *xch = xc_interface_open(NULL, NULL, 0);
    xencall_handle *xcall = xencall_open(NULL, 0);
    xen_mem_paging_op_t *op = xencall_alloc_buffer(xcall, sizeof(*op));
    char *buffer = xencall_alloc_buffer_pages(xcall, 1), contents[4096];

    if (xc_mem_paging_enable(xch, domid, &port)) {
        perror("xc_mem_paging_enable");
        return 1;
    }
    memset(contents, 1, sizeof(contents));
    op->domain = domid;
    double began = 0, evicted = 0, loaded = 0;
    for (int pass = 0; pass < 2; pass++) {
        began = now();
        for (uint64_t gfn = first; gfn < first + pages; gfn++) {
            call(xcall, op, XENMEM_paging_op_nominate, gfn);
            call(xcall, op, XENMEM_paging_op_evict, gfn);
        }
        evicted = now();
        set_xen_guest_handle_raw(op->buffer, (void *)buffer);
        for (uint64_t gfn = first; gfn < first + pages; gfn++) {
            memcpy(buffer, contents, sizeof(contents));
            call(xcall, op, XENMEM_paging_op_prep, gfn);
        }
        loaded = now();
    }
    printf("%.0f %.0f\n", evicted - began, loaded - evicted);
    xencall_free_buffer_pages(xcall, buffer, 1);
    xencall_free_buffer(xcall, op);
    xencall_close(xcall);
    if (xc_mem_paging_disable(xch, domid))
        perror("xc_mem_paging_disable");
    return xc_interface_close(xch);
}
