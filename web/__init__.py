"""What all aiohttp services of the lab share."""
