"""A real Kubernetes cluster for Quire's demo and end-to-end tests, and the images that run on it."""
