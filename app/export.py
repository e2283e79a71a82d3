"""`python -m app.export`; the command itself is in app/commands/export.py."""

import sys

from app.commands.export import main
from tracking.text import tolerant

if __name__ == "__main__":
    tolerant()
    sys.exit(main())
