"""Restoring more photos than one machine does: many workers on Ray Data, photos and results on any file system."""
