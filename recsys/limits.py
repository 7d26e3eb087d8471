"""Limits that hold for every table, request and event alike."""

from __future__ import annotations

MAX_ID_BYTES = 512
"""Of UTF-8, in ids and in names of event types."""
