"""Detection operators: pure functions of one image; a batch is a `vmap` away."""
