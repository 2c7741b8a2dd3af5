"""The helper's end of the channel to its controller: ZeroMQ, or libxl's pipes."""
