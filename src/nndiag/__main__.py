"""``python -m nndiag``."""

import sys

if __name__ == "__main__":
    # -m puts the working directory first: a scanned directory could bring a numpy.py of its own.
    if not sys.flags.safe_path:
        del sys.path[0]
    from nndiag.cli import main

    raise SystemExit(main())
