"""Where the work is done: the only part of raq that imports ray."""
