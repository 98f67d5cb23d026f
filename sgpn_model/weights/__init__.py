"""Weights: checkpoints, those that ship, those of others, and their conversion."""
