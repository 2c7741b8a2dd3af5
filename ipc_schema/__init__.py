"""What controller, helper and streams say: tables and pure functions, without I/O."""
