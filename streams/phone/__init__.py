"""Sensor logs of phones as recordings."""
