"""What the scripts share: environments, logging, checkpoints, statistics, and small functions and flags of HIS."""
