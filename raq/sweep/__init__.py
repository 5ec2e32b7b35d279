"""What to try next: calibrations, hyper-parameters, layers."""
