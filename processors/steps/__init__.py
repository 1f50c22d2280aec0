"""Transforms of a stream: Specs and their Stages, a file a family."""
