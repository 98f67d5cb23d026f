"""The 3D face prior: morphable model, lighting, camera, rasteriser, and the shape prior that joins them."""
