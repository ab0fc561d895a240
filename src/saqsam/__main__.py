"""`python -m saqsam`."""

from saqsam.cli.app import main

if __name__ == "__main__":
    main()
