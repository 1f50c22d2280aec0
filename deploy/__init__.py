"""What runs Kymo: the embedded broker, the workers and their images. Nothing below this package knows of it."""
