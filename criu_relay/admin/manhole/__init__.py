"""The manhole: a Python prompt inside a running daemon, over SSH, with commands to look at images and discard them."""
