"""Entry points: ``python -m fastcomposer.cli.<command>``. They only wire; heavy imports wait for the configuration."""
