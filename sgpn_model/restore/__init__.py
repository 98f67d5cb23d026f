"""Restoring photos with trained networks."""
