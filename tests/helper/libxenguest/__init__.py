"""Tests of the engine libxenguest, with a C library in place of Xen's."""
