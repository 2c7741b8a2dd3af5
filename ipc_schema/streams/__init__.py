"""The formats of a migrating or saved guest: libxl's and libxc's streams, xl's and libvirt's
headers."""
