"""``python -m sgpn_model.cli``: the command ``sgpn`` where the package is not installed."""

import sys

from sgpn_model.cli import main

sys.exit(main())
