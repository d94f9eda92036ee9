"""Its presence marks a clone of DexterousHands."""
