"""What people look at, rebuilt from records alone: neither torch nor ray."""
