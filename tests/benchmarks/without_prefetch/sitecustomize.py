"""Turns prefetch around faults off in every process that has this directory in its PYTHONPATH."""

from xen_save_helper.helper.engine import postcopy_pages

postcopy_pages.PREFETCH_AROUND_FAULTS = False
