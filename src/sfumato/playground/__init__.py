"""A page on which models draw the same conditions side by side, with the rewards of the runs."""
