"""Measure speed: ``python -m fastcomposer.cli.bench``."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command


@command("bench")
def main(config: DictConfig) -> None:
    """Time the chosen suites and write the figures."""
    from fastcomposer.evaluation.speed import SUITES, run_suites

    unknown = [name for name in config.suites if name not in SUITES]
    if unknown:
        raise ValueError(f"suites: unknown {', '.join(unknown)}; there are {', '.join(SUITES)}")
    from rich.console import Console
    from rich.table import Table

    rows = run_suites(config)
    table = Table("suite", "what", "median per second", "spread", "unit")
    for row in rows:
        table.add_row(row.suite, row.what, f"{row.rate:.1f}", f"±{row.spread:.1f}", row.unit)
    Console().print(table)
    file = Path(config.output) / "bench.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    print(file)


if __name__ == "__main__":
    main()
