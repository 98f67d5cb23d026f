"""Option files: reading them, where each option was written, and what each may be."""
