"""Measurements: each comparison in one run on one machine. `make bench` runs them all."""
