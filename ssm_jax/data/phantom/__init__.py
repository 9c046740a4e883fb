"""Chest CT phantoms drawn from a seed."""
