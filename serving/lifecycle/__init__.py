"""Which model answers: fetched, tried, swapped in, watched, taken back."""
