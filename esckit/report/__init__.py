"""What a reader sees of a run: Markdown, one self-contained page, and plots as files."""
