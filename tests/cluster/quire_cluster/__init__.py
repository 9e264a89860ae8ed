"""A real Kubernetes for the demo and the end-to-end tests, and the images that run on it."""
