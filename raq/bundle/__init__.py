"""A folder to deploy: one artifact, how to run it, and what is known of it. Neither torch nor ray."""
