"""Readers of morphable models in other formats."""
