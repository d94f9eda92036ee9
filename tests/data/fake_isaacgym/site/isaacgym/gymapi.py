"""The bindings: loading them is where an unsuited Python shows."""

from fake_bidex import FAULTS

if "bindings" in FAULTS:
    raise RuntimeError("No gym module found for the active version of Python (9.9)")
