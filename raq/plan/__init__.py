"""What will be done: stages, their fingerprints, what is stale, what is required."""
