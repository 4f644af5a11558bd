"""A data folder in a few lines: which records it has, of whom, and a digest of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from fastcomposer.data.index import RecordTable
from fastcomposer.utils.settings import digest


def describe_records(table: RecordTable, labels: Collection[str] | None) -> dict[str, Any]:
    """Describe a split.

    Args:
        table: Its records; pixels are not looked at.
        labels: Labels of the segments that count as subjects; ``None`` for all.

    Returns:
        Plain values: how many ``records`` and ``bad_records``, ``subjects`` and ``identities`` there are,
        ``records_by_subjects`` and ``subjects_by_label``, and the ``digest`` of ids, labels and identities.
    """
    names = tuple(dict.fromkeys(table.record_ids))
    segments = {name: table.segments[name] for name in names}
    counts = [table.num_subjects(name, labels) for name in names]
    by_label = Counter(
        label for found in segments.values() for _, label, _ in found if labels is None or label in labels
    )
    return {
        "records": len(names),
        "bad_records": len(table.bad_records),
        "subjects": sum(counts),
        "identities": len(table.by_identity(labels)),
        "records_by_subjects": {str(k): n for k, n in sorted(Counter(counts).items())},
        "subjects_by_label": dict(sorted(by_label.items())),
        "digest": digest([list(table.record_ids), segments]),
    }
