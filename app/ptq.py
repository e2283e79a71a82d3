"""`python -m app.ptq`; the command itself is in app/commands/ptq.py."""

import sys

from app.commands.ptq import main
from tracking.text import tolerant

if __name__ == "__main__":
    tolerant()
    sys.exit(main())
