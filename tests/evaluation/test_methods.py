"""Methods draw what the pipeline would, only cheaper."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_evaluation import SAMPLER, Toy

from fastcomposer.evaluation.benchmark import Case, Subject
from fastcomposer.evaluation.methods import (
    FastComposerMethod,
    ImageRequest,
    PersonalizedMethod,
    TextOnlyMethod,
)
from fastcomposer.evaluation.pipelines import load_base, load_trained, pipeline_metadata
from fastcomposer.training.personalization.concept import Concept, write_concepts

OPTIONS = {key: value for key, value in SAMPLER.items() if key != "alpha"}


@pytest.fixture(scope="module")
def untrained(toy: Toy) -> Any:
    pipeline = load_base(str(toy.base))
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline


def case(number: int, subjects: tuple[str, ...] = ("a",), seed: int = 0, prompt: str = "a man") -> Case:
    return Case(f"x/{number}", "x", "context", f"{prompt} <|image|>", prompt, subjects, seed)


class TestGroups:
    @pytest.mark.parametrize(
        ("batch_size", "group_size", "sizes"),
        [(4, 100, [24, 6]), (5, 100, [30]), (4, 8, [8, 8, 8, 6]), (1, 1, [1] * 30), (9, 2, [2] * 15)],
    )
    def test_sizes_are_kept(self, batch_size: int, group_size: int, sizes: list[int], trained: Any) -> None:
        """Six people from five noises each."""
        method = FastComposerMethod(trained, SAMPLER, [0.5], batch_size, group_size)
        requests = [
            ImageRequest(case(10 * i + seed, (str(i),), seed), 0) for i in range(6) for seed in range(5)
        ]
        groups = method.groups(requests)
        assert [len(group) for group in groups] == sizes
        assert len({request for group in groups for request in group}) == 30

    def test_people_from_other_noises_are_apart(self, trained: Any) -> None:
        """A group is a full table of variants and noises, also where an interruption left holes."""
        method = FastComposerMethod(trained, SAMPLER, [0.5])
        requests = [
            ImageRequest(case(0, ("a",), 7), 0),
            ImageRequest(case(1, ("a",), 8), 0),
            ImageRequest(case(2, ("b",), 8), 0),
        ]
        assert [len(group) for group in method.groups(requests)] == [2, 1]


class TestFastComposer:
    def test_images_are_those_of_the_pipeline(self, toy: Toy, trained: Any) -> None:
        method = FastComposerMethod(trained, SAMPLER, [0.5, 1.0, 0.0], batch_size=8)
        (benchmark,) = toy.benchmarks(single=None)
        method.prepare(benchmark.subjects, Path("nowhere"))
        known = {subject.id: subject.reference for subject in benchmark.subjects}
        requests = [ImageRequest(one, setting) for one in benchmark.cases for setting in range(3)]
        rows: list[int] = []
        hook = trained().unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]) // 2))
        drawn = {group: method.sample(group, attention=True) for group in method.groups(requests)}
        hook.remove()
        calls = sum(sum(one.unet_calls) for one in drawn.values())
        assert calls == pytest.approx(sum(rows))
        assert sum(rows) == 12 * (4 + 2 + 4)  # α = 0 goes all the way, and 0.5 joins it half-way
        for group, one in drawn.items():
            assert one.images.shape == (len(group), 3, 32, 32)
            assert min(one.seconds) > 0
            ratios = {round(s / c, 9) for s, c in zip(one.seconds, one.unet_calls, strict=True)}
            assert len(ratios) == 1
            for request, image, maps in zip(group, one.images, one.attention, strict=True):
                alpha = method.settings[request.setting]["alpha"]
                assert (maps is None) == (alpha == 0)
                assert maps is None or maps.shape == (2, 16, 16)
                if request.case.seed != group[0].case.seed:
                    continue
                alone = trained()(
                    request.case.prompt,
                    references=[known[name] for name in request.case.subjects],
                    alpha=alpha,
                    generator=torch.Generator().manual_seed(request.case.seed),
                    output_type="pt",
                    **OPTIONS,
                ).images[0]
                assert (image - alone).abs().max() < 1e-4

    def test_several_references_of_a_subject(self, toy: Toy, trained: Any) -> None:
        method = FastComposerMethod(trained, SAMPLER, [1.0], num_references=2)
        (benchmark,) = toy.benchmarks(single=None)
        method.prepare(benchmark.subjects, Path("nowhere"))
        assert method.settings == ({"alpha": 1.0, "references": 2},)
        assert method.costs().reference_images == 2
        known = {subject.id: list(subject.tuning_images[:2]) for subject in benchmark.subjects}
        assert [method.images(subject) for subject in benchmark.subjects] == [*map(tuple, known.values())]
        one = benchmark.cases[0]
        alone = trained()(
            one.prompt,
            references=[known[name] for name in one.subjects],
            alpha=1.0,
            generator=torch.Generator().manual_seed(one.seed),
            output_type="pt",
            **OPTIONS,
        ).images[0]
        assert (method.sample([ImageRequest(one, 0)]).images[0] - alone).abs().max() < 1e-4
        few = replace(benchmark.subjects[0], images=benchmark.subjects[0].images[:1])
        with pytest.raises(ValueError, match=r"num_references=2, but there are 1 images of subject"):
            method.prepare([few], Path("nowhere"))

    def test_what_decides_pixels(self, toy: Toy, trained: Any) -> None:
        method = FastComposerMethod(trained, SAMPLER, [0.5, 1.0], labels={"localization": "none"})
        assert method.settings == (
            {"alpha": 0.5, "localization": "none"},
            {"alpha": 1.0, "localization": "none"},
        )
        first, second = method.config(0), method.config(1)
        assert first | {"alpha": 1.0} == second
        assert first["sampler"] == OPTIONS
        assert {"unet", "vae", "fusion", "image_encoder", "text_encoder", "tokenizer"} == set(
            first["weights"]
        )
        again = load_trained(str(toy.base), checkpoint=str(toy.checkpoint))
        assert pipeline_metadata(again, subjects=True)["weights"] == first["weights"]
        with torch.no_grad():
            next(again.unet.parameters()).flatten()[0] += 1e-3
        changed = pipeline_metadata(again, subjects=True)["weights"]
        assert {name for name in changed if changed[name] != first["weights"][name]} == {"unet"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alphas": [0.5, 1.5]}, r"alphas=\[0.5, 1.5\]: one or more different numbers between 0 and 1"),
            ({"num_references": 6}, "num_references=6: between 1 and 5"),
            ({"batch_size": 0}, "batch_size=0: at least 1"),
            ({"group_size": 0}, "group_size=0: at least 1"),
        ],
    )
    def test_bad_settings_are_seen_before_anything_is_loaded(
        self, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            FastComposerMethod(pytest.fail, SAMPLER, **options)


class TestTextOnly:
    def test_references_are_never_seen(self, toy: Toy, untrained: Any) -> None:
        method = TextOnlyMethod(untrained, SAMPLER, batch_size=4)
        (benchmark,) = toy.benchmarks(multi=None)
        gone = [Subject(s.id, s.word, (Path("gone.png"),)) for s in benchmark.subjects]
        method.prepare(gone, Path("nowhere"))
        assert method.images(gone[0]) == ()
        seen: list[str] = []
        hooks = [
            getattr(untrained(), name).register_forward_hook(lambda *_, name=name: seen.append(name))
            for name in ("image_encoder", "fusion")
        ]
        requests = [ImageRequest(one, 0) for one in benchmark.cases]
        (group,) = method.groups(requests)
        drawn = method.sample(group)
        for hook in hooks:
            hook.remove()
        assert seen == []
        assert method.costs().reference_images == 0
        # Two prompts of a man and of a woman, two noises each: eight images for twelve cases.
        assert sum(drawn.unet_calls) == pytest.approx(8 * 4)
        assert len(set(drawn.seconds)) == 1
        for request, image in zip(group, drawn.images, strict=True):
            assert "<|image|>" not in request.case.text
            alone = untrained()(
                request.case.text,
                alpha=0.0,
                generator=torch.Generator().manual_seed(request.case.seed),
                output_type="pt",
                **OPTIONS,
            ).images[0]
            assert (image - alone).abs().max() < 1e-4

    def test_what_the_text_does_not_need_does_not_decide(self, toy: Toy) -> None:
        """A base has no fusion: it is made at random, and would make each process's settings others."""
        metadata = [TextOnlyMethod(lambda: load_base(str(toy.base)), SAMPLER).config(0) for _ in range(2)]
        assert metadata[0] == metadata[1]
        assert set(metadata[0]["weights"]) == {"unet", "vae", "text_encoder", "tokenizer"}


def learn(
    images: tuple[Path, ...], word: str, folder: Path, name: str, seed: int, calls: list[str]
) -> Concept:
    """Stands in for fine-tuning: a random token for each person."""
    calls.append(name)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(len(name) + ord(name[1]))) * 3
    concept = Concept("textual_inversion", word, f"<{name}>", folder / name, 60.0 * len(calls), 0, 1000, 5)
    return write_concepts(folder / name, [concept], {f"tokens.<{name}>": vector}, {})[0]


class TestPersonalized:
    def test_each_person_is_learned_then_drawn_from_text(
        self, toy: Toy, untrained: Any, tmp_path: Path
    ) -> None:
        calls: list[str] = []
        method = PersonalizedMethod(
            "textual_inversion", untrained, partial(learn, seed=0, calls=calls), SAMPLER, batch_size=3
        )
        single, multi = toy.benchmarks()
        method.prepare(single.subjects, tmp_path)
        assert calls == ["00_man", "01_woman", "02_man"]
        costs = method.costs()
        assert costs.personalization_seconds_per_subject == 120
        assert costs.stored_bytes_per_subject == pytest.approx(
            (tmp_path / "00_man" / "concept.safetensors").stat().st_size, abs=3
        )
        assert (costs.reference_images, costs.peak_memory_bytes) == (5, 1000)
        groups = method.groups([ImageRequest(one, 0) for one in (*single.cases, *multi.cases)])
        assert [{request.case.subjects for request in group} for group in groups] == [
            {subjects} for subjects in (*single.groups, *multi.groups)
        ]
        images = {}
        for group in (groups[0], groups[3]):
            drawn = method.sample(group)
            assert drawn.images.shape == (4, 3, 32, 32)
            assert drawn.unet_calls == (4.0,) * 4
            images |= {request.case.id: image for request, image in zip(group, drawn.images, strict=True)}
        text = [
            TextOnlyMethod(untrained, SAMPLER).sample([ImageRequest(case, 0)]) for case in single.cases[:1]
        ]
        assert (images[single.cases[0].id] - text[0].images[0]).abs().max() > 1e-3

    def test_the_recipe_decides_pixels_and_the_trainer_does_not(self, untrained: Any) -> None:
        def method(**options: Any) -> PersonalizedMethod:
            recipe = partial(
                learn, **{"seed": 0, "calls": [], "trainer": partial(dict, devices=1), **options}
            )
            return PersonalizedMethod("dreambooth", untrained, recipe, SAMPLER, max_subjects=1)

        assert method().config(0) == method(trainer=partial(dict, devices=2)).config(0)
        assert method().config(0) != method(seed=1).config(0)

    def test_bad_settings(self, untrained: Any) -> None:
        with pytest.raises(ValueError, match=r"methods\.lora: no such method; there are fastcomposer"):
            PersonalizedMethod("lora", untrained, partial(learn), SAMPLER)
        with pytest.raises(ValueError, match=r"methods\.dreambooth\.personalize: a functools\.partial"):
            PersonalizedMethod("dreambooth", untrained, learn, SAMPLER)


class TestPipelines:
    def test_a_checkpoint_is_needed(self, toy: Toy) -> None:
        with pytest.raises(ValueError, match="checkpoint: name trained weights"):
            load_trained(str(toy.base))
        with pytest.raises(FileNotFoundError, match=r"checkpoint gone\.ckpt: no such file"):
            load_trained(str(toy.base), checkpoint="gone.ckpt")

    def test_saved_pipelines_are_checkpoints(self, toy: Toy, trained: Any, tmp_path: Path) -> None:
        trained().save_pretrained(tmp_path)
        saved = load_trained("not looked at", checkpoint=str(tmp_path))
        assert pipeline_metadata(saved, subjects=True) == pipeline_metadata(trained(), subjects=True)
