"""``python -m edge_embed`` is ``edge-embed``."""

import sys

from edge_embed.commands import main

sys.exit(main())
