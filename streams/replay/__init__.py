"""Recordings sent at their pace."""
