"""``python -m xarch``: the command line, also for torchrun."""

from xarch.cli.app import main

if __name__ == "__main__":
    main()
