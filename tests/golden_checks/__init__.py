"""Checks of golden files, one folder per system, one module per area.

Each module has `CHECKS`: file-name prefix -> function of a `Case` that asserts
parity. A system without a folder here is not implemented yet.
"""
