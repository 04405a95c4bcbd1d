"""Publish a run on the Hugging Face Hub: its model, and a model card."""
