"""Fault injection in the controller, the handshake and the link between two of them."""
