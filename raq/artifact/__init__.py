"""What is deployed: lowering, reading, auditing and checking artifacts."""
