"""What the scripts share and what teaches nothing about HIS: environments, logging, checkpoints, statistics."""
