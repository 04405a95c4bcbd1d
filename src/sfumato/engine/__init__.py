"""Engines own the parameters: where weights live, how they are updated and saved, and what the reference is."""
