"""An evaluation of seconds, and one that was never run: made-up scores and flat images, laid out alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from toy_evaluation import Toy

PUBLISHED_MORE = 0.1
BENCHMARKS = Path(__file__).resolve().parents[2] / "data" / "benchmarks" / "mini"


@dataclass(frozen=True)
class MadeUp:
    """A method's scores: every image has the same, apart from what the subjects add.

    By the published protocol identity is :data:`PUBLISHED_MORE` above the corrected one.
    """

    method: str
    identity: float
    prompt: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 2.0
    personalization: float = 0.0
    stored: int = 0
    references: int = 1
    by_subject: float = 0.02  # step of identity from one subject to the next
    benchmarks: Sequence[str] = ("single_subject", "multi_subject")


METHODS = (
    MadeUp("text_only", 0.04, 0.27, references=0, by_subject=0.005),
    MadeUp("textual_inversion", 0.29, 0.22, {"steps": 500}, 2.2, 700.0, 4_096, 5, 0.03),
    MadeUp("dreambooth", 0.47, 0.24, {"steps": 400}, 2.1, 520.0, 44_000_000, 5),
    MadeUp("custom_diffusion", 0.43, 0.235, {"steps": 250}, 2.1, 300.0, 3_200_000, 5, 0.05),
    *(
        MadeUp("fastcomposer", identity, prompt, {"alpha": alpha, "localization": "mini"})
        for alpha, identity, prompt in (
            (0.0, 0.05, 0.27),
            (0.4, 0.2, 0.265),
            (0.6, 0.45, 0.255),
            (0.8, 0.5, 0.235),
            (1.0, 0.52, 0.2),
        )
    ),
    MadeUp(
        "fastcomposer",
        0.38,
        0.25,
        {"alpha": 0.6, "localization": "none"},
        benchmarks=("multi_subject",),
        by_subject=0.01,
    ),
)


@pytest.fixture(scope="module")
def toy(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Files of an evaluation of seconds."""
    from toy_evaluation import make_toy

    return make_toy(small_base, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def trained(toy: Toy) -> Any:
    """Makes the pipeline of their weights, which is loaded once."""
    from fastcomposer.evaluation.pipelines import load_trained

    pipeline = load_trained(str(toy.base), checkpoint=str(toy.checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline


@pytest.fixture(scope="session")
def made_up() -> type[MadeUp]:
    """A method's made-up scores."""
    return MadeUp


@pytest.fixture(scope="session")
def write_evaluation() -> Callable[..., tuple[Path, list[Any]]]:
    """Write an evaluation's folder; takes a place and the methods, gives the folder and the benchmarks."""
    return evaluation


@pytest.fixture(scope="session")
def whole_evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Folder and benchmarks of an evaluation with everything that there can be."""
    return evaluation(tmp_path_factory.mktemp("evaluation"), attention=True)


def flat_image(made_up: MadeUp, number: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (40 * number % 256, int(255 * made_up.identity), 120))


def evaluation(
    folder: Path,
    methods: Sequence[MadeUp] = METHODS,
    draw: Callable[[MadeUp, int], Image.Image] = flat_image,
    attention: bool = False,
) -> tuple[Path, list[Any]]:
    from fastcomposer.evaluation.benchmark import Subset, load_benchmarks
    from fastcomposer.evaluation.results import Costs, row_from_scores, write_results

    people = folder / "people"
    people.mkdir(parents=True)
    words = json.loads((BENCHMARKS / "single_subject.json").read_text())["subjects"]
    for number, name in enumerate(words):
        Image.new("RGBA", (112, 112), (number * 16, 90, 60, 200)).save(people / f"{name}.png")
    single = Subset(num_subjects=4, prompts_per_category=2, images_per_prompt=1)
    multi = Subset(num_subjects=4, prompts_per_category=2, images_per_prompt=1, num_pairs=4)
    benchmarks = load_benchmarks(BENCHMARKS, people, single=single, multi=multi)
    rows = []
    for benchmark in benchmarks:
        for number, made_up in enumerate(methods):
            if benchmark.name not in made_up.benchmarks:
                continue
            run = folder / "results" / benchmark.name / f"{made_up.method}-{number}"
            costs = Costs(made_up.references, made_up.personalization, made_up.stored, 1_500_000_000)
            rows.append(row_from_scores(_scores(run, benchmark, made_up, draw, attention), costs))
    write_results(
        folder / "results" / "results.json", rows, {"machine": "an abacus", "versions": {"torch": "9"}}
    )
    return folder / "results", benchmarks


def _scores(
    run: Path, benchmark: Any, made_up: MadeUp, draw: Callable[..., Image.Image], attention: bool
) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fastcomposer.evaluation.results import SCORES
    from fastcomposer.utils.provenance import image_text

    order = [subject.id for subject in benchmark.subjects]
    lines = []
    for number, case in enumerate(benchmark.cases):
        image = run / "images" / f"{case.id}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        photo = draw(made_up, number)
        about = {"prompt": case.prompt, "seed": case.seed}
        photo.save(image, pnginfo=image_text(about))
        if attention:
            for place in range(len(case.subjects)):
                file = run / "attention" / case.id / f"{place}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                photo.point(lambda value: value // 2).save(file)
        offset = made_up.by_subject * (sum(map(order.index, case.subjects)) / len(case.subjects) - 1.5)
        lines.append(
            {
                "case": case.id,
                "benchmark": benchmark.name,
                "method": made_up.method,
                "settings": json.dumps(dict(made_up.settings)),
                "category": case.category,
                "subjects": list(case.subjects),
                "seed": case.seed,
                "identity": made_up.identity + offset,
                "identity_published": made_up.identity + offset + PUBLISHED_MORE,
                "detected": len(case.subjects),
                "prompt_consistency": made_up.prompt + offset / 10,
                "copy_paste": 0.03,
                "seconds": made_up.seconds,
                "unet_calls": 60.0,
                "image": str(image.relative_to(run)),
            }
        )
    table = pa.Table.from_pylist(lines, schema=SCORES)
    pq.write_table(table, run / "scores.parquet")
    return table
