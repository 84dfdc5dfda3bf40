"""Artifacts on disk: crash-safe work folders, checked Arrow files and their index."""
