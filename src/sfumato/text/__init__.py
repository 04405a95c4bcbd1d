"""Text encoders: convert captions to features."""
