"""Export, prepare, calibrate, convert, audit and lower: torch and torchao, never ray."""
