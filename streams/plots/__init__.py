"""Recordings to look at: figures and pages."""
