"""What reads captions."""
