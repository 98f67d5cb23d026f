"""Random inputs of every kind, and what must hold whatever the input is; scripts/fuzz.py tries them by the thousand."""
