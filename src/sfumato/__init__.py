"""Sfumato: online reinforcement learning for autoregressive image generators."""
