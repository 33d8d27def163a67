"""The code that all aiohttp services of the lab share, besides their telemetry."""
