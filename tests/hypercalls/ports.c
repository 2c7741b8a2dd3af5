/* libxendevicemodel and libxengnttab: libxenctrl opens a device model's handle, tells of pages that it
 * has modified, and closes it. Everything else is refused. */
#include "machine.h"

#include <errno.h>
#include <stdlib.h>

void *xendevicemodel_open(void *logger, unsigned int open_flags)
{
    if (!machine_get())
        return NULL;
    int error = tally("xendevicemodel_open", NULL);
    if (error) {
        machine_put();
        errno = error;
        return NULL;
    }
    return malloc(1);
}

int xendevicemodel_close(void *dmod)
{
    if (dmod) {
        machine_put();
        free(dmod);
    }
    return 0;
}

/* As modified_memory in Xen's dm.c, which refuses a domain's highest page. */
int xendevicemodel_modified_memory(void *dmod, domid_t domid, uint64_t first_pfn, uint32_t nr)
{
    struct guest *guest = guest_of(domid);
    uint64_t end = first_pfn + nr;
    int error = tally("XEN_DMOP_modified_memory", NULL);

    if (!error && !guest)
        error = ESRCH;
    if (!error && guest->domain->log_dirty) {
        if (!nr || end > guest->domain->maximum_gpfn)
            error = EINVAL;
        else
            for (uint64_t pfn = first_pfn; pfn < end; pfn++)
                if (guest->kinds[pfn] == RAM || guest->kinds[pfn] == UNMAPPABLE)
                    guest->dirty[pfn] = 1;
    }
    if (!error)
        return 0;
    errno = error;
    return -1;
}

/* Their parameters do not matter, so they have none. */
#define REFUSED(name, type, result) \
    type name(void) \
    { \
        errno = refuse("%s", #name); \
        return result; \
    }
#define REFUSED_INT(name) REFUSED(name, int, -1)
#define REFUSED_POINTER(name) REFUSED(name, void *, NULL)

REFUSED_INT(xendevicemodel_create_ioreq_server)
REFUSED_INT(xendevicemodel_destroy_ioreq_server)
REFUSED_INT(xendevicemodel_get_ioreq_server_info)
REFUSED_INT(xendevicemodel_inject_event)
REFUSED_INT(xendevicemodel_inject_msi)
REFUSED_INT(xendevicemodel_map_io_range_to_ioreq_server)
REFUSED_INT(xendevicemodel_map_pcidev_to_ioreq_server)
REFUSED_INT(xendevicemodel_pin_memory_cacheattr)
REFUSED_INT(xendevicemodel_set_ioreq_server_state)
REFUSED_INT(xendevicemodel_set_isa_irq_level)
REFUSED_INT(xendevicemodel_set_mem_type)
REFUSED_INT(xendevicemodel_set_pci_intx_level)
REFUSED_INT(xendevicemodel_set_pci_link_route)
REFUSED_INT(xendevicemodel_track_dirty_vram)
REFUSED_INT(xendevicemodel_unmap_io_range_from_ioreq_server)
REFUSED_INT(xendevicemodel_unmap_pcidev_from_ioreq_server)

REFUSED_POINTER(xengnttab_open)
REFUSED_INT(xengnttab_close)
REFUSED_POINTER(xengnttab_map_grant_ref)
REFUSED_POINTER(xengnttab_map_grant_refs)
REFUSED_POINTER(xengnttab_map_domain_grant_refs)
REFUSED_POINTER(xengnttab_map_grant_ref_notify)
REFUSED_INT(xengnttab_unmap)
REFUSED_INT(xengnttab_set_max_grants)
REFUSED_POINTER(xengntshr_open)
REFUSED_INT(xengntshr_close)
REFUSED_POINTER(xengntshr_share_pages)
REFUSED_POINTER(xengntshr_share_page_notify)
REFUSED_INT(xengntshr_unshare)
