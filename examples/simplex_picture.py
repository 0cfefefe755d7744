"""Draw the clients of a run on the solution simplex, as in the README: python examples/simplex_picture.py RUN PICTURE."""

import sys
from pathlib import Path

import floco
from floco.cli.views import simplex_picture

run, picture = sys.argv[1:]
simplex_picture(floco.open_run(run), Path(picture))
print(picture)
