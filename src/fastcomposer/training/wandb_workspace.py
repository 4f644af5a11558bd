"""The panels that show trainings and evaluations in Weights & Biases, and a workspace of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SAMPLE_IMAGES = "samples/images"
"""Key of the image of all samples."""
SAMPLE_ROWS = "samples/subjects"
"""Key of the table with a row for each subject of each sample."""
RESULTS = "evaluation/results"
"""Key of the table with a row for each method, setting and benchmark."""


@dataclass(frozen=True)
class Panel:
    """One panel: the logged keys of a command's runs, as lines or images over steps, or as a table."""

    section: str
    title: str
    keys: tuple[str, ...]
    kind: Literal["lines", "images", "table"] = "lines"
    job: Literal["train", "evaluate"] = "train"


PANELS = (
    Panel("Losses", "Loss", ("train/loss",)),
    Panel("Losses", "Denoising", ("train/denoise_loss", "val/denoise_loss")),
    Panel("Losses", "Localization", ("train/localization_loss", "val/localization_loss")),
    Panel("Samples", "Images of the same people", (SAMPLE_IMAGES,), "images"),
    Panel("Samples", "Subjects and scores", (SAMPLE_ROWS,), "table"),
    Panel("Samples", "Identity preservation", ("samples/identity",)),
    Panel("Samples", "Prompt consistency", ("samples/prompt_consistency",)),
    Panel("Evaluation", "Results", (RESULTS,), "table", "evaluate"),
    Panel("Steps", "Gradient norm", ("train/grad_norm",)),
    Panel("Steps", "Learning rate", ("train/learning_rate",)),
    Panel("Machine", "Images a second", ("train/images_per_second",)),
    Panel("Machine", "Most memory, GiB", ("train/memory_gib",)),
)
"""All panels; tests look for the data of each in what a run has logged."""


def workspace(entity: str, project: str) -> Workspace:
    """Build the workspace of a project, without saving it."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    def made(panel: Panel) -> Any:
        if panel.kind == "images":
            return reports.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=1)
        if panel.kind == "table":
            return reports.WeavePanelSummaryTable(table_name=panel.keys[0])
        return reports.LinePlot(title=panel.title, x="trainer/global_step", y=list(panel.keys))

    sections = [
        workspaces.Section(name=section, panels=[made(panel) for panel in panels], is_open=True)
        for section, panels in itertools.groupby(PANELS, key=lambda panel: panel.section)
    ]
    return workspaces.Workspace(entity=entity, project=project, name="FastComposer", sections=sections)


def save_workspace(project: str, entity: str | None = None) -> str:
    """Create the workspace on the server, for a user or team or who is logged in; returns its address.

    Raises:
        ValueError: If nobody is logged in, or the server refuses it, with what to do.
    """
    import wandb
    from wandb.errors import Error

    again = "then give this command again"
    if not wandb.login(prompt=False, verify=False):
        raise ValueError(
            "nobody is logged in at Weights & Biases: call `wandb login`, send your runs with "
            f"`wandb sync <run folder>/wandb/offline-run-*`, {again}. Without an account, logger=tensorboard "
            "and logs/metrics.csv of every run hold the same figures"
        )
    try:
        view = workspace(entity or str(wandb.Api().default_entity), project).save()
    except Error as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"project={project}, entity={entity}: the server refused the workspace ({reason}). "
            "A project is there once a run was sent to it: `wandb sync <run folder>/wandb/offline-run-*`, "
            f"{again}"
        ) from error
    return str(view.url)
