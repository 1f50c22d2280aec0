"""Whole trips on the public face: demo, loop, magnetic."""
