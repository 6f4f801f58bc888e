"""Run the command as `python -m fxhash`."""

from fxhash.cli import main

if __name__ == "__main__":
    main()
