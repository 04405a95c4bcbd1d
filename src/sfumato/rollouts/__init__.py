"""Rollouts: batches of images that are drawn, decoded and scored."""
