"""How much longer than elsewhere what has to come may take: in an emulated machine (`scripts/in-vm.sh`)."""

import os

PATIENCE = float(os.environ.get("CLOISTER_TEST_PATIENCE", "1"))
