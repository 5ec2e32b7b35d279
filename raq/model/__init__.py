"""Models, data, training and evaluation: plain torch, never ray."""
