"""What was found: records and files, in a folder or in an object storage."""
