"""This machine's Xen, as libxl handles it."""
