"""Recordings of an IMU with a magnetometer, made up from motion plans."""
