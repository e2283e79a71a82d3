"""`python -m app.plan`; the command itself is in app/commands/plan.py."""

import sys

from app.commands.plan import main
from tracking.text import tolerant

if __name__ == "__main__":
    tolerant()
    sys.exit(main(sys.argv[1:]))
