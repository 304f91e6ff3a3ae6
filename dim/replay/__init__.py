"""A memory of a fixed number of bytes for continual and federated learning."""
