"""`python -m app.measure`; the command itself is in app/commands/measure.py."""

import sys

from app.commands.measure import main
from tracking.text import tolerant

if __name__ == "__main__":
    tolerant()
    sys.exit(main(sys.argv[1:]))
