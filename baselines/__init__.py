"""Other algorithms than HIS, one script each, made to be compared with it."""
