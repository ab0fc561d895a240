"""`python -m saqsam`."""

from saqsam.cli import main

if __name__ == "__main__":
    main()
