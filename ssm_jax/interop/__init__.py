"""Exchange with other programs: PyTorch files, the reference implementation, portable models."""
