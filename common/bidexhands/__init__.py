"""Bi-DexHands: two Shadow hands that hand over, catch, lift, pull and push, in MuJoCo or in a user's own Isaac Gym."""
