"""Entry points, ``python -m fastcomposer.cli.<command>``: they only wire, and import late."""
