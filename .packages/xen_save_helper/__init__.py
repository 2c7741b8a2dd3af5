"""Xen's save helper and its controller: `ipc_schema` is what they say to each other, `helper` saves
and restores one domain, `toolstack` drives helpers as libxl does.
"""
