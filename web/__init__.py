"""What every aiohttp service of the lab does the same way."""
