"""Tests of the engine libxenguest, with a C library in the place of Xen's."""
