"""Sealing the days of an event log: as a dataset for the night, or as JSON lines.

An export holds all records that came in up to the end of a day, so it is a function of the log and the day:
made again it has the same bytes, and a later one holds what an earlier one held. Days are those of ingestion,
because only those are ever over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from recsys.dataset_folder import write_dataset
from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.events.log import EventReader, Record
from serving.events.sealed_folder import seal
from serving.events.tables import tables_of

GRACE_S = 60.0
"""What came in before midnight may still be on its way into the log for so long."""

DAY_S = 86_400.0
JSON_LINES_FILE = "events.jsonl"
_PAGE = 5000


@dataclass
class _Taken:
    """Counts of the records that an export takes."""

    records: int = 0
    late: int = 0


def export(
    log: EventReader,
    out: Path,
    *,
    until: date | None = None,
    unfinished: bool = False,
    jsonl: bool = False,
    now: float | None = None,
) -> dict[str, Any]:
    """Write everything up to the end of a day into a folder, in place of the last export there.

    Args:
        log: what is exported; others may write it meanwhile.
        out: the folder; `manifest.json` in it tells what it holds.
        until: last day, UTC; the last finished one by default.
        unfinished: take everything that is there, today's included; this is the one export that is not final.
        jsonl: `events.jsonl`, one event a line in the order of the log, as `POST /v1/events` takes them.
        now: epoch seconds, UTC.

    Returns:
        Counts: `records` taken, `late` ones that happened on an earlier day than they came, `rows_lost` to
        damage, `repeated` copies left out, those of `event_tables.Tables`, and whether anything `changed`.

    Raises:
        RecsysError: `day_not_finished` (exit 75); what `sealed_folder.seal` and the log raise.
    """
    last = last_finished_day(time.time() if now is None else now)
    day = None if unfinished else until or last
    if day is not None and day > last:
        what = f"{day} can be exported from {day + timedelta(days=1)} 00:01 UTC on;"
        raise RecsysError("day_not_finished", what, "--until", exit_code=EXIT_TEMPORARY)
    counts: dict[str, Any] = {}

    def write(folder: Path) -> dict[str, Any]:
        taken = _Taken()
        records = _records(log, day, taken)
        counts.update(_write_lines(folder, records) if jsonl else _write_tables(folder, records))
        counts.update(records=taken.records, late=taken.late)
        if not jsonl:
            rows = counts["events"] + counts["impressions"] + counts["items"] + counts["older_item_words"]
            counts["repeated"] = taken.records - rows
        form = "jsonl" if jsonl else "dataset"
        return {"until": day.isoformat() if day else None, "form": form, **counts}

    changed = seal(out, write)
    until_text = day.isoformat() if day else "now"
    return {"until": until_text, **counts, "rows_lost": log.damage.rows_lost, "changed": changed}


def last_finished_day(now: float) -> date:
    """The last day, UTC, of which nothing can come any more."""
    return datetime.fromtimestamp(now - GRACE_S, UTC).date() - timedelta(days=1)


def _records(log: EventReader, day: date | None, taken: _Taken) -> Iterator[Record]:
    """Records that came in up to the end of the day, counted on the way."""
    end = float("inf") if day is None else (day - date(1970, 1, 1)).days * DAY_S + DAY_S
    after, last = 0, log.last
    while after < last and (page := log.read(after, _PAGE)):
        after = page[-1].sequence
        for stored in page:
            record = stored.record
            if stored.sequence <= last and record.ingest_ts < end:
                taken.records += 1
                taken.late += record.event_ts // DAY_S < record.ingest_ts // DAY_S
                yield record


def _write_tables(folder: Path, records: Iterator[Record]) -> dict[str, Any]:
    tables = tables_of(records)
    write_dataset(folder, tables.items, tables.events, tables.impressions)
    return {**tables.counts, "mixed_ids": tables.mixed_ids}


def _write_lines(folder: Path, records: Iterator[Record]) -> dict[str, Any]:
    lines = 0
    with (folder / JSON_LINES_FILE).open("wb") as file:
        for record in records:
            file.write(record.payload + b"\n")
            lines += 1
        file.flush()
        os.fsync(file.fileno())
    return {"lines": lines}
