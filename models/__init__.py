"""What happens to windows: datasets, training, bundles and classification."""
