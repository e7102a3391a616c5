"""One module a command: `add` declares its parser, `run` does the work and imports what that needs."""
