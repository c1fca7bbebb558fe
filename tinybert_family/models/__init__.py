"""The family. bert.py first: every other file says only what differs from it."""
