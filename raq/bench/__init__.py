"""Latency and its statistics: never ray."""
