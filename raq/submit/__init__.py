"""Send an experiment to a cluster that runs elsewhere."""
