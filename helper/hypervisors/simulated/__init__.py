"""The simulated hypervisor: a host is a directory, a guest is a process.

    create (toolstack)                 guest process                     helper
    ------------------                 -------------                     ------
    domains/<domid>/config.json        memory, p2m, write counters,      maps the same memfds
    domains/<domid>/process.json  ---> domain page: four memfds     <--- through /proc/PID/fd
    domains/<domid>/vcpu (socket) ---> pause, suspend, paging, ...  <--- paging only

Everything that a hypervisor knows about a domain is in the shared memory, so queries and mappings
never need the guest's cooperation; a guest that is stopped, or waits for a page, holds up nobody.
"""
