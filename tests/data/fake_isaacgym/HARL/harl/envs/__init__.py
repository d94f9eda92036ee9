"""Part of the fake clone of HARL."""
