"""Whether this machine can run a command with a configuration, found without loading weights."""
