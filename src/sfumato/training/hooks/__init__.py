"""Hooks: additional actions at a step. Every process runs every hook; only the main process writes files."""
