"""The training step as one compiled graph, and the policy that decides when it pays."""
