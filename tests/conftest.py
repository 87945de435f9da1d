"""Kernels run in Triton's interpreter, so it must be switched on before any of them is imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"
# Threads of small matrices wait for each other in busy loops, on a machine that has other work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# On a machine with a GPU as on one without: tests/test_gpu.py undoes this for its workers.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.pop("AUTOTUNE_DB", None)

from pathlib import Path

import pytest

from autotune import dispatch


@pytest.fixture
def db_path(tmp_path):
    return tmp_path / "test.db"


@pytest.fixture(autouse=True)
def no_database(tmp_path):
    """Dispatch starts from an empty database, whatever lies in the working directory."""
    from autotune.store import Store

    empty = tmp_path / "empty.db"
    Store(empty).close()
    dispatch.use(empty)
    yield
    dispatch.use(None)


@pytest.fixture(scope="session")
def root():
    return Path(__file__).parent.parent
