"""libxl's side: drives save helpers, writes and reads the libxl stream, hands guests over."""
