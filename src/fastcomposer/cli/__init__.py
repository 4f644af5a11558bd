"""The subcommands of ``fastcomposer``: they only wire, and import late."""
