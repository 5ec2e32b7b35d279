"""What is asked: the schema of an experiment and how its file is read."""
