"""The page of a run: one HTML file, from records alone. Neither torch nor ray."""
