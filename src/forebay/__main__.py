"""``python -m forebay`` is ``forebay``."""

from forebay.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
