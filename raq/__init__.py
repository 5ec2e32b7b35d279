"""raq: decide which quantized version of a model to ship, and prove it."""
