"""Training: the stages, their losses, and the loop that runs them."""
