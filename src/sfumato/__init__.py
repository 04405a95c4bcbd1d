"""Sfumato: online reinforcement learning for autoregressive image generators."""

from sfumato.families.library import load
from sfumato.policy import Generator, Policy
from sfumato.rollout import Conditions, Rollout

__all__ = ["Conditions", "Generator", "Policy", "Rollout", "load"]
