"""`kubectl quire status` and `kubectl quire top`: what a person asks of services that run."""
