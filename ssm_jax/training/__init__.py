"""Training: state, optimizer, the two steps, and the loop around them."""
