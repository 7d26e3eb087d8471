"""Compression of the text encoder: methods that make it smaller, and the choice among what they give."""
