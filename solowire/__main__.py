"""`python -m solowire` is the `solowire` command."""

from solowire.cli import main

if __name__ == "__main__":
    main()
