"""Models at work in a worker: windows in, events out, exchanged while it runs."""
