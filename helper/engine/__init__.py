"""Our own engine: what xc_domain_save and xc_domain_restore do, and postcopy besides."""
