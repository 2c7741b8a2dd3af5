"""What xl adds to libxl: the handshake of a migration, save files, the journal and recovery."""
