"""The parts of `experiments.credit_view`: load a run, play it, measure its credit, doubt it, draw it."""
