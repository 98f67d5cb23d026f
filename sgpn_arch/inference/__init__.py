"""The same networks made ready for inference: ``for_inference()``."""
