"""Reinforcement-learning algorithms as pure functions on tensors."""
