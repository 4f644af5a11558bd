"""Logs that outlast interruptions and a server that cannot be reached."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from fastcomposer.utils.files import disk_error, existing_file, write_atomically


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV log, which a resumed training continues; Lightning's own begins anew."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of this log."""
        if self._experiment is None:
            self._experiment = _ContinuedWriter(self.log_dir)
        return self._experiment

    def state(self, step: int, coming: Mapping[str, Any]) -> dict[str, Any]:
        """Write what was logged, and return for a checkpoint its number of ``rows`` and the ``next`` row.

        The trainer saves before it logs: ``coming`` is the row of the step that is done, if it has one.
        """
        self.save()
        writer = self.experiment
        logged = writer.last_trained == step - 1
        return {"rows": writer.count, "next": None if logged or not coming else {**coming, "step": step - 1}}

    @rank_zero_only
    def resume(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Forget the rows of an earlier process that came after ``state``, or all without one."""
        writer = self.experiment
        rows, following = (state["rows"], state["next"]) if state else (0, None)
        writer.earlier = writer.earlier[:rows] + ([following] if following else [])
        writer.count, writer.last_trained = len(writer.earlier), step - 1


class _ContinuedWriter(ExperimentWriter):
    """Puts the rows of an earlier process before its own."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.earlier = _complete_rows(Path(self.metrics_file_path))
        self.count, self.last_trained = 0, -1
        self._begun = False

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Count rows, and note the last training step that has one."""
        super().log_metrics(metrics_dict, step)
        self.count += 1
        if step is not None and any(name.startswith("train/") for name in metrics_dict):
            self.last_trained = step

    def save(self) -> None:
        """Write what was logged, the first time behind what an earlier process logged."""
        if self.metrics and not self._begun:
            self._begun = True
            if self.earlier:
                self.metrics_keys = sorted({key for row in self.earlier for key in row})
                self._write(self.metrics_keys, self.earlier)
            else:
                Path(self.metrics_file_path).unlink(missing_ok=True)
        try:
            super().save()
        except OSError as error:
            raise disk_error(error, self.metrics_file_path) from error

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, _complete_rows(Path(self.metrics_file_path)))

    def _write(self, fieldnames: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the file beside its path; Lightning would write over it."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(Path(self.metrics_file_path), lambda file: file.write(text.getvalue().encode()))


def _complete_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a log; the last is left out where its writer was killed within it."""
    if not file.exists():
        return []
    try:
        lines = existing_file(file, "log").read_text().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: cannot be read as a table: {error}; remove it") from error
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return list(csv.DictReader(lines))


class PatientWandbLogger(WandbLogger):
    """Lightning's log to Weights & Biases, which continues in files where the server cannot be reached.

    The run stays open after a training until :meth:`close`, which prints how to send these files.

    Args:
        timeout: Seconds to wait for the server when the run begins.
        offline: Whether to write files only.
        name: Of the run; ``None`` for that of its folder.
        artifacts: Whether weights are sent, besides descriptions of data and base.
        images: Whether a data folder is sent, and not its description alone.
        **options: Arguments of :class:`lightning.pytorch.loggers.WandbLogger` and ``wandb.init``.
    """

    def __init__(
        self,
        timeout: float = 60,
        offline: bool = False,
        name: str | None = None,
        artifacts: bool = True,
        images: bool = False,
        **options: Any,
    ) -> None:
        import wandb

        name = name or run_name(options.get("save_dir", "."))
        super().__init__(name=name, **options, settings=wandb.Settings(init_timeout=timeout))
        # Lightning always hands it over, and wandb warns that it does nothing.
        self._wandb_init.pop("anonymous", None)
        self.artifacts, self.images = artifacts, images
        if offline:  # Lightning's own argument sets an environment variable, for later runs, too
            self._wandb_init["mode"] = "offline"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; offline from the beginning where the server does not answer."""
        if self._experiment is not None:
            return self._experiment
        from wandb.errors import Error

        try:
            return super().experiment
        except Error as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"wandb: {reason} The training continues and logs to files.", stacklevel=2)
            self._wandb_init["mode"] = "offline"
            return super().experiment

    @rank_zero_only
    def log_input(self, artifact: Any) -> None:
        """Record what the run was made from: an artifact, the same as any of its name, kind and content."""
        if self.experiment.offline:  # as use_artifact does with a new one, which it refuses offline
            self.experiment._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self.experiment.use_artifact(artifact)

    @rank_zero_only
    def log_output(self, artifact: Any) -> None:
        """Keep an artifact that the run has made."""
        self.experiment.log_artifact(artifact)

    @rank_zero_only
    def close(self) -> None:
        """End the run, and print where its files are."""
        run, self._experiment = self._experiment, None
        if run is None:
            return
        offline = run.offline  # set by WANDB_MODE, too
        run.finish()  # or the next training of this process would continue it
        if offline:
            print(f"wandb: not sent yet. To send it: wandb sync {os.path.dirname(run.dir)}")  # noqa: PTH120


def run_name(folder: str | Path) -> str:
    """Name a run after its folder: ``outputs/mini`` is ``mini``, ``multirun/search/3`` is ``search-3``."""
    path = Path(folder).resolve()
    return f"{path.parent.name}-{path.name}" if path.name.isdigit() else path.name


@contextmanager
def kept_open(loggers: Iterable[Any]) -> Iterator[list[PatientWandbLogger]]:
    """Yield the loggers whose runs take artifacts, and end these runs with the block."""
    runs = [logger for logger in loggers if isinstance(logger, PatientWandbLogger)]
    try:
        yield runs
    finally:
        for run in runs:
            run.close()
