"""The engine `libxenguest`: libxc's own save and restore, of real domains.

`save.domain_save` and `restore.domain_restore` have the contract of our own engine's.
"""
