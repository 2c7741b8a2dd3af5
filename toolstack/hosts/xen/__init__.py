"""This machine's Xen, as libxl deals with it."""
