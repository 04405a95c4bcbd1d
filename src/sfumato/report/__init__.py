"""One HTML file about runs: pictures, curves, figures, settings."""
