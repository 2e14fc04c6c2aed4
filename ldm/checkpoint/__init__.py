"""Files of weights: reading, renaming, loading strictly, saving."""
