"""`python -m nextitem` is the `nextitem` command."""

from nextitem.cli.main import main

if __name__ == "__main__":
    main()
