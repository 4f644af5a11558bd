"""Report measurements: ``fastcomposer report results=…`` or ``sweep=multirun/…``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command, conclude

ALIAS = ("sweep", "jobs")
"""``sweep=`` names a folder here, which is the key ``jobs``; to Hydra it is the group of sweeps."""


@command("report", alias=ALIAS)
def main(config: DictConfig) -> None:
    """Write tables and page of a sweep where one is named, else of an evaluation."""
    (_report_results if config.jobs is None else _report_sweep)(config)


def _report_results(config: DictConfig) -> None:
    results = Path(config.results)
    documents = {key: config[key] for key in ("readme", "document") if config[key] is not None}
    for key, document in documents.items():
        from fastcomposer.utils.markdown import check_section

        check_section(key, document, "results")
    if not any(results.glob("**/results.json")):
        raise FileNotFoundError(f"results={results}: no results.json there; evaluate writes it")

    from hydra.utils import instantiate

    from fastcomposer.evaluation.report.write_report import write_report

    # ~benchmark takes the group away.
    benchmarks = instantiate(config.benchmark) if config.get("benchmark") else ()
    files = write_report(results, list(config.formats), config.alpha, benchmarks)
    print(*files, sep="\n")
    if documents:
        from fastcomposer.evaluation.load_results import collect
        from fastcomposer.evaluation.report.write_report import results_section, summary_section
        from fastcomposer.utils.markdown import write_section

        sections = {"readme": summary_section, "document": results_section}
        for key, document in documents.items():
            write_section(document, "results", sections[key](collect(results, config.alpha)))
            print(document)
    conclude({"tables and page": results})


def _report_sweep(config: DictConfig) -> None:
    if not Path(config.jobs).is_dir():
        raise FileNotFoundError(f"sweep={config.jobs}: no such folder")

    document, section = config.document, Path(config.jobs).name.removeprefix("ablation_")
    if document is not None:
        from fastcomposer.utils.markdown import check_section

        check_section("document", document, section)

    from fastcomposer.sweeps.report.sweep_page import undone_line, unscored_line, write_sweep_report

    sweep, sentences, files = write_sweep_report(config.jobs, tuple(config.formats), config.baseline)
    print(*sentences, *files, sep="\n")
    if document is not None:
        from fastcomposer.sweeps.report.sweep_document import sweep_section
        from fastcomposer.utils.markdown import write_section

        write_section(document, section, sweep_section(sweep, Path(document), section))
        print(document)
    for job in sweep.undone:
        print(f"not finished: {undone_line(job, sweep.keys)}")
    if sweep.unscored:
        print(unscored_line(sweep))
    conclude({"tables and page": config.jobs})


if __name__ == "__main__":
    main()
