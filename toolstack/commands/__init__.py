"""The commands of `xen-toolstack`."""
