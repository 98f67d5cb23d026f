"""Floor 3: what is done with networks (training stages, losses, metrics, restoration, commands)."""
