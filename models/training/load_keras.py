"""Keras and TensorFlow, loaded such that torch can stand beside them. In: nothing. Out: the two modules.

TensorFlow and the compiler that torch brings along (triton) hold an LLVM each. Loaded behind TensorFlow, triton's
registers its options a second time and ends the process; the other way round both work. Hence triton first, if it is
there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what C++ writes to stderr while it loads, before any setting of its log holds; it is shown if loading fails."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# Else TensorFlow tells of its build, and on machines without a GPU of that, at every start; its errors are exceptions, too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On several threads, TensorFlow 2.21 corrupted memory in training convolutions (seen on an AMD EPYC, where an epoch's last
# batch is smaller); on one it did not.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
if "tensorflow" not in sys.modules:
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")

with _quiet():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
