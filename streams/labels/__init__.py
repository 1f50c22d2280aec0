"""Intervals of a session with a class."""
