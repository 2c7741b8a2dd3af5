"""The engine `libxenguest`: libxc's own save and restore of real domains.

`save.domain_save` and `restore.domain_restore` have the same contract as our own engine's.
"""
