"""The formats of a guest on its way: libxl's stream, libxc's, xl's and libvirt's heads."""
