"""`python -m app.widths`; the command itself is in app/commands/widths.py."""

import sys

from app.commands.widths import main
from tracking.text import tolerant

if __name__ == "__main__":
    tolerant()
    sys.exit(main())
