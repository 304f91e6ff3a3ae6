"""What a set, a generator or a model trained on it reveals of the images that it was made from."""
