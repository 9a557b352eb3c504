"""Models: T-RevSNN."""
