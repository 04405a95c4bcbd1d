"""A report on runs as one HTML file: pictures, curves, figures and settings."""
