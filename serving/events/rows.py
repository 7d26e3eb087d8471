"""How a record lies in a store: one blob that can be told from other bytes and verified by itself.

A blob starts with a marker and carries a checksum over everything behind it, its sequence number included,
so that a search for the marker finds every whole record of a file whose structure is gone.
"""

from __future__ import annotations

import struct
import zlib

from serving.events.log import Record, Stored

MARKER = b"\xf7\xe5\x0dRec"
"""Its first byte stands in no UTF-8 text."""

_HEAD = struct.Struct(">6sIQddHHI32s")
"""Marker, CRC-32 of what follows, sequence, event_ts, ingest_ts, lengths of kind, id and payload, digest."""

HEAD_BYTES = _HEAD.size
_CHECKED_FROM = len(MARKER) + 4


def pack(sequence: int, record: Record) -> bytes:
    """The blob of a record."""
    kind, event_id, payload = record.kind.encode(), record.event_id.encode(), record.payload
    lengths = (len(kind), len(event_id), len(payload))
    head = _HEAD.pack(MARKER, 0, sequence, record.event_ts, record.ingest_ts, *lengths, record.digest)
    content = b"".join((head[_CHECKED_FROM:], kind, event_id, payload))
    return MARKER + zlib.crc32(content).to_bytes(4) + content


def unpack(blob: bytes) -> Stored | None:
    """The record of a blob, None where a single bit of it is not as it was written."""
    if len(blob) < HEAD_BYTES:
        return None
    marker, checksum, sequence, event_ts, ingest_ts, kind_bytes, id_bytes, payload_bytes, digest = (
        _HEAD.unpack_from(blob)
    )
    id_at = HEAD_BYTES + kind_bytes
    payload_at = id_at + id_bytes
    is_whole = marker == MARKER and len(blob) == payload_at + payload_bytes
    if not is_whole or zlib.crc32(blob[_CHECKED_FROM:]) != checksum:
        return None
    event_id, kind = blob[id_at:payload_at].decode(), blob[HEAD_BYTES:id_at].decode()
    return Stored(sequence, Record(event_id, kind, digest, event_ts, ingest_ts, blob[payload_at:]))


def blob_bytes(start: bytes) -> int:
    """Length of the blob that starts with these bytes, by its own words; 0 where it does not start here."""
    if len(start) < HEAD_BYTES or start[: len(MARKER)] != MARKER:
        return 0
    *_, kind_bytes, id_bytes, payload_bytes, _ = _HEAD.unpack_from(start)
    return HEAD_BYTES + kind_bytes + id_bytes + payload_bytes
