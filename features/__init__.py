"""Features: one declaration each, replayed over a log or kept live."""
