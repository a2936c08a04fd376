"""`python -m moonshelf`: the command line where its script is not on the path."""

from moonshelf.cli import main

if __name__ == "__main__":
    main()
