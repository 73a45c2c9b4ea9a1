"""The command line: Typer only, one thin file per command, nothing heavy imported before it is needed."""
