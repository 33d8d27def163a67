"""``python -m web.probe``: is the service in this container ready? The containers' health check."""

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
