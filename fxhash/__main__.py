"""Run the command as `python -m fxhash`."""

from fxhash.cli.app import main

if __name__ == "__main__":
    main()
