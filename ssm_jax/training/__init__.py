"""Training: state, optimiser, the two steps, and the loop around them."""
