"""What runs inside dom0: Python's standard library and our installed package only."""
