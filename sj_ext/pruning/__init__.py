"""Pruning to a budget by minimax optimisation."""
