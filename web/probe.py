"""The health check of a container: ``python -m web.probe`` fails unless the service in it is ready."""

from __future__ import annotations

import os
import sys
from urllib.request import urlopen

TIMEOUT = 2.0  # seconds

if __name__ == "__main__":
    try:
        urlopen(f"http://127.0.0.1:{os.environ['PORT']}/readyz", timeout=TIMEOUT).close()
    except OSError as error:
        sys.exit(str(error))
