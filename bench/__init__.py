"""Measures the relay against references that run beside it: `make bench`; see README.md here."""
