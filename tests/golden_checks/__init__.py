"""Checks of golden files, one folder per system, one module per area.

A module (or the folder's `__init__`) may have:
  CHECKS: file-name prefix -> function of a `golden_case.Case` that asserts
    parity; it must read every argument and compare every output, or say
    `case.ignore(key, reason)`;
  JSON_CHECKS: the same for `.json` files, function of the path;
  PENDING: prefix -> why the part is not implemented yet; reported as skipped.

The longest prefix counts. A file of a system with a folder here whose prefix
nobody knows fails; a system without a folder is not implemented yet.
"""
