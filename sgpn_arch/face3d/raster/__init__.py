"""The differentiable rasteriser and its backends."""
