"""Run the exporter: ``python -m exporter``."""

import logging
import os
import sys

from aiohttp import web

from exporter.app import SERVICE, create_app
from exporter.settings import Settings
from web.settings import Environment, SettingsError

if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        settings = Settings.read(Environment(os.environ))
    except SettingsError as error:
        print(f"{SERVICE}: {error}", file=sys.stderr)
        sys.exit(2)
    web.run_app(create_app(settings), host=settings.host, port=settings.port, print=None, access_log=None)
