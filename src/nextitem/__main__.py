"""Entry point of `python -m nextitem`, the same as the `nextitem` command."""

from nextitem.cli.main import main

if __name__ == "__main__":
    main()
