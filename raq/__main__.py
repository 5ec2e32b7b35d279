"""`python -m raq`."""

import sys
from pathlib import Path

# Python puts the working folder first, where a file of the user's could hide a library; raq may itself lie there
if sys.path and sys.path[0] in ("", str(Path.cwd())):
    sys.path.append(sys.path.pop(0))

from raq.cli.main import main

if __name__ == "__main__":
    main()
