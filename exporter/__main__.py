"""Run the exporter: ``python -m exporter``."""

import gc
import sys

# Garbage collections during imports find next to nothing and take a fifth of the time. web.helper enables them again.
gc.disable()

import logging

from exporter.app import SERVICE, create_app
from exporter.settings import Settings
from web.helper import main

if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    sys.exit(main(SERVICE, Settings.read, create_app))
