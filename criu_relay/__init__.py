"""Moves running processes from one Linux machine to another through memory: CRIU's images over one link."""

__version__ = "0.1.0"
