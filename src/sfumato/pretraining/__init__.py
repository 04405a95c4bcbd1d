"""Training of models from scratch."""
