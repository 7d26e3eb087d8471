"""What people run: the `recsys` command line, its steps and its configuration."""
