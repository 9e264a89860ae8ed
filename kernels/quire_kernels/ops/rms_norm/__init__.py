"""RMS normalization (Zhang and Sennrich 2019, arXiv:1910.07467), alone or after a residual add."""
