"""The unix side: one Protocol per dialect that CRIU speaks, and the sockets that it finds in its directories."""
