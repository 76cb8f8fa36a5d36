"""The command line `nextitem`, with one command per file."""
