"""A stand-in for a hypervisor below libxenctrl: see README.md."""
