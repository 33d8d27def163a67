"""Settings of the process that make it faster under load and change nothing else."""

from __future__ import annotations

import gc

from web.settings import ServerSettings


def reduce_garbage_collection() -> None:
    """Exclude objects that exist at start-up from garbage collection, and collect the others less often.

    A request allocates a few hundred objects and frees nearly all of them by reference counting, so collections find
    next to nothing and cost a fourteenth of the CPU. A thousand concurrent requests hold tens of thousands of
    objects: with a threshold below that, collections traverse them again and again.

    Collections are off until then, see each service's ``__main__``. The garbage from the start-up, about 2,000 objects,
    is kept: finding it among the 90,000 objects of the roller, or the 240,000 of the frontend, would delay the first
    requests by 0.1 to 0.3 s.
    """
    gc.freeze()
    gc.set_threshold(200_000, 5, 5)
    gc.enable()


def backlog(settings: ServerSettings) -> int:
    """How many connections may wait in the kernel to be accepted.

    aiohttp's default is 128. When a thousand clients connect at once, that queue is full, and a refused client tries
    again after a second. asyncio's own loop accepts up to this many connections in a row; when it runs out of file
    descriptors, it fails this many times before it does anything else. With it the limit stays at 128.
    """
    return 4096 if settings.event_loop == "uvloop" else 128
