"""`python -m raq`: for where the command is not on the path."""

from raq.cli import main

if __name__ == "__main__":
    main()
