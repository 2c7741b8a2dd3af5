"""Take streams apart, for people."""
