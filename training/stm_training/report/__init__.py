"""What a run shows: the summary of its figures, one table for the terminal, one page for the browser."""
