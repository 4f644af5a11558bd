"""``python -m fastcomposer``: the same as the command ``fastcomposer``."""

from fastcomposer.cli.app import main

main()
