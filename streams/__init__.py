"""Kymo's edge: chunks and their codec, topics, settings, readers of files, replay and what comes back (events)."""
