#!/usr/bin/env bash
# PyYAML 6.0.3 reads 1e-4 as text, 010 as eight, and of a key that is written twice only the last; it raises nothing.
#
# Seen:     safe_load of "1e-4", "1e6" and "1.0e6" gives text, of "1.0e-4" and "1.0e+6" numbers: YAML 1.1 wants a point and a
#           sign. "010" is 8 and "1:30" is 90. "lr: 1" and "lr: 2" in one mapping give {"lr": 2}, although YAML wants keys to be unique.
# Expected: numbers as YAML 1.2 (2009) and JSON have them, and an error for a key that is there twice.
# Ours:     sgpn_model/config/strict_yaml.py reads numbers as YAML 1.2 has them, and refuses a second key.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pyyaml==6.0.3"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import yaml

seen = {"1e-4": "1e-4", "1e6": "1e6", "1.0e6": "1.0e6", "1.0e-4": 1e-4, "1.0e+6": 1e6, "010": 8, "1:30": 90}
found = {text: yaml.safe_load(text) for text in seen}
for text, value in found.items():
    print(f"PyYAML {yaml.__version__}: {text} is {value!r} ({type(value).__name__})")
twice = yaml.safe_load("lr: 1\nlr: 2\n")
print(f"PyYAML {yaml.__version__}: a key twice: {twice}")
sys.exit(0 if found == seen and twice == {"lr": 2} else "it behaves otherwise now")
PYTHON
echo "as found: numbers of YAML 1.1, and no word about a key that is there twice"
