#!/usr/bin/env bash
# The published evaluation: the released weights on FG-NET, MORPH2, CACD-VS and CALFW. Flags are passed on to test.py.
set -euo pipefail
cd "$(dirname "$0")"
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
python=${PYTHON:-$python} # PYTHON=... ./test.sh takes another one
exec "$python" test.py "$@"
