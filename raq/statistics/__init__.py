"""Intervals and tests: of proportions, and of paired differences. Neither torch nor ray."""
