"""What all commands share: where the configuration lives, and errors in words."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fastcomposer.cli.help import show_help
from fastcomposer.sweeps.job import as_job
from fastcomposer.sweeps.session import watched
from fastcomposer.utils.assets import packaged
from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.texts import escaped, keep_texts
from fastcomposer.utils.workers import message_in_worker

if TYPE_CHECKING:
    from rich.table import Table

CONFIG_FOLDER = packaged("conf")
_PARTS = ("base", "image_encoder", "architecture", "weights", "variant", "max_subjects")
_WIDEST = 1000  # columns of a table in a log
# What wrong settings, files and captions raise, and disks and processes that fail; anything else is a defect
# of ours and keeps its trace.
_EXPECTED = (ValueError, OSError, FaultError, OmegaConfBaseException)

_EXTRAS = {
    "facenet_pytorch": "faces",
    "gradio": "demo",
    "optuna": "sweeps",
    "skimage": "prepare",
    "spacy": "prepare",
}
"""Packages that a plain installation does not have, and the extras that bring them."""
_USELESS_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # inside Lightning
    r".*in eval mode at the start of training",  # frozen parts are in eval mode on purpose
    r".*does not have many workers",
    r"Checkpoint directory .* exists and is not empty",  # a training that goes on finds its own there
)


def command(
    config_name: str,
    free_text: str | None = None,
    spoken: tuple[str, str] | None = None,
    check_objective: Callable[[DictConfig], None] | None = None,
    expand: Callable[[Sequence[str]], list[str]] | None = None,
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make an entry point of a function that takes the composed configuration.

    Expected errors end the command with their message and status 1; ``HYDRA_FULL_ERROR=1`` shows the trace.
    SIGTERM ends it with status 143. What the function returns is what a search goes by.

    Args:
        config_name: Name of the file in ``conf/``.
        free_text: Key whose value may hold any characters without Hydra's own quotes.
        spoken: A name that is a group of configurations elsewhere, and the key that it stands for here.
        check_objective: Refuses an ``objective`` that the function will not measure; ``None`` where it
            measures nothing that a search could go by.
        expand: Says in Hydra's words what an argument stands for.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)
        @wraps(function)
        def main(config: DictConfig) -> Any:
            keep_texts(config)

            def work() -> Any:
                _quieten()
                _use_threads(config.get("threads"))
                with _ending_on_sigterm():
                    return function(config)

            if HydraConfig.get().mode is RunMode.MULTIRUN:
                return as_job(work, config, told)
            try:
                return work()
            except Exception as error:
                words = told(error)
                if os.environ.get("HYDRA_FULL_ERROR") == "1" or words is None:
                    raise
                print(f"error: {words}", file=sys.stderr)
                sys.exit(1)

        @wraps(function)
        def entry() -> None:
            _quieten()  # a search checks its objective before its jobs, and what that imports reads this
            if free_text is not None:
                sys.argv = [quoted(argument, free_text) for argument in sys.argv]
            if spoken is not None:
                sys.argv = [renamed(argument, *spoken) for argument in sys.argv]
            if expand is not None:
                try:
                    sys.argv = [sys.argv[0], *expand(sys.argv[1:])]
                except (ValueError, OSError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    sys.exit(1)
            if show_help(config_name, CONFIG_FOLDER, sys.argv[1:]):
                return
            with watched(config_name, CONFIG_FOLDER, check_objective):
                main()

        return entry

    return decorate


def quoted(argument: str, key: str) -> str:
    """Put a text in Hydra's quotes as ``key=value``, unless it has some or the key is another."""
    name, equals, value = argument.partition("=")
    if name != key or not equals or value[:1] in ("'", '"'):
        return argument
    return f"{name}={QuotedString(escaped(value), Quote.double).with_quotes()}"


def renamed(argument: str, name: str, key: str) -> str:
    """Put the key in the place of a name that Hydra would take for a group."""
    given, equals, value = argument.partition("=")
    return f"{key}={value}" if given == name and equals else argument


def trained_pipeline(config: DictConfig, scheduler: Mapping[str, Any] | None) -> Any:
    """Load what ``checkpoint`` and ``model`` name, with the safety checker where there is one.

    Args:
        config: Of the command.
        scheduler: See :func:`~fastcomposer.pipeline.schedulers.use_scheduler`.

    Returns:
        The pipeline, on the GPU where there is one.
    """
    import torch

    from fastcomposer.evaluation.pipelines import load_trained
    from fastcomposer.pipeline.schedulers import use_scheduler

    pipeline: Any = load_trained(checkpoint=config.checkpoint, safety_checker=True, **_parts(config.model))
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    use_scheduler(pipeline, scheduler)
    return pipeline


def load_base_model(model: DictConfig) -> Any:
    """Load the model that the group ``model`` names, untrained by us."""
    from fastcomposer.composer import FastComposer

    return FastComposer.from_pretrained(**_parts(model))


def load_trained_model(model: DictConfig, checkpoint: str) -> Any:
    """Load a checkpoint over the model that the group ``model`` names."""
    from fastcomposer.composer import FastComposer

    return FastComposer.from_checkpoint(checkpoint, **_parts(model))


def _parts(model: DictConfig) -> dict[str, Any]:
    """What the group ``model`` says of where the networks come from."""
    return {key: model[key] for key in _PARTS}


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, tidily, with status 143; trainings listen for it themselves.

    Lightning calls this handler after its own, which for predictions only notes that there was a signal.
    """
    received: list[int] = []

    def end(number: int, frame: Any) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # a launcher's: nobody can listen there
        yield
        return
    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception as error:
        if received:  # what was half set up may fail while it is put away
            raise SystemExit(128 + received[0]) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def told(error: Exception) -> str | None:
    """What the user is told of an error; ``None`` where it is a defect of ours, whose trace is wanted."""
    cause = _cause(error)
    if isinstance(cause, _EXPECTED):
        return message_in_worker(str(cause))
    if isinstance(cause, ModuleNotFoundError) and cause.name in _EXTRAS:
        return missing_extra(cause.name)
    if isinstance(error, InstantiationException):  # a value of a kind that a constructor did not look for
        return f"{' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)"
    return None


def missing_extra(package: str) -> str:
    """How to install a package that comes with an extra."""
    extra = _EXTRAS[package]
    if package == "facenet_pytorch":  # its metadata asks for torch<2.3, which pip cannot be told to overlook
        how = f"pip install --no-deps facenet-pytorch==2.6.0, or uv sync --extra {extra}"
    else:
        how = f"pip install 'fastcomposer[{extra}]'"
    return f"{package} is not installed: {how}"


def _cause(error: BaseException) -> BaseException:
    """What went wrong inside a constructor, without Hydra's wrapping."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _quieten() -> None:
    """Leave the terminal to what concerns the user: progress, results and warnings that call for action."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("litdata").setLevel(logging.WARNING)
    for text in _USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message=text)


def quieten_lightning() -> None:
    """The same of Lightning, for after its import, which sets these levels."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def show_table(table: Table) -> None:
    """Print a table; where the output is no terminal, as wide as its contents ask for."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        wanted = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
        console = Console(width=max(console.width, wanted))
    console.print(table)
