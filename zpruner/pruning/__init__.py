"""Compositions of score, mask, refinement and update, and models pruned with them."""
