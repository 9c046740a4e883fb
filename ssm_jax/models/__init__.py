"""The networks, in the order a slice meets them: backbone, FPN, RPN, RoI heads, module S."""
