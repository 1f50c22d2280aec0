"""How much memory each thing may take, bytes. In: nothing. Out: a number a thing; together they keep a worker of one recipe under 1 GB.

What is counted is bytes, since a sample may be one number or a picture. A thing that is larger than its budget goes alone. What no budget
can bound, a window itself, is worked out from the recipe when it is loaded: see :mod:`kymo.processors.recipe.load`.
"""

from __future__ import annotations

from typing import Final

from kymo.streams.topics import MESSAGE_MAX, MIB

#: One JPEG image: larger ones are left out where a chain begins.
IMAGE: Final = MIB
#: Samples of one message; the rest is for its header, and for what a producer adds.
MESSAGE_DATA: Final = MESSAGE_MAX - MIB // 16
#: Records that are handed over at once: one batch is worked on, one lies ready, one is being made, librdkafka holds two more.
FETCHED: Final = 4 * MIB
#: Chunks of a session that go through its chain together, as what they become: more would only add latency.
RUN: Final = 2 * MIB
#: Outputs that wait to be judged, and windows that wait for a shadow.
PENDING: Final = 32 * MIB
#: Windows that are judged together, and the copy of them that the model takes.
BATCH: Final = 32 * MIB
#: Values of records that wait for the broker's word.
OUTBOX: Final = 32 * MIB
#: Memories of sessions that are packed together; what is due beyond it is stored with the next commit.
PACKED: Final = 32 * MIB
#: What one session keeps, and one window of it on its way to the model.
WINDOW: Final = 256 * MIB
