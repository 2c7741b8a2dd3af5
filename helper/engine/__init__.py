"""Our own engine: xc_domain_save and xc_domain_restore, and postcopy."""
