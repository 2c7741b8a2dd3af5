"""libxl's operations on one domain: suspend, migrate away, create from a stream."""
