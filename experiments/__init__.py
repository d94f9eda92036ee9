"""Suites, plots and benchmarks around the training scripts."""
