"""Write the cases of a benchmark for other systems: ``fastcomposer benchmark export=cases.jsonl``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command, conclude


@command("benchmark")
def main(config: DictConfig) -> None:
    """Write the cases."""
    from fastcomposer.utils.files import check_folder

    file = Path(config.export)
    check_folder("export", str(file.parent))
    if file.is_dir():
        raise IsADirectoryError(f"export={file}: a folder, not a file")

    from hydra.utils import instantiate

    from fastcomposer.evaluation.foreign import write_cases

    print(f"{write_cases(instantiate(config.benchmark), file):,} cases")
    conclude({"cases": file})


if __name__ == "__main__":
    main()
