"""`python -m moonshelf.cli`, by which `accelerate launch` starts it."""

from moonshelf.cli import main

if __name__ == "__main__":
    main()
