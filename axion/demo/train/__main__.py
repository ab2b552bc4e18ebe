"""Makes the demo model from nothing: `python -m axion.demo.train`.

It generates conversations from the grammar, trains a network of under four million parameters on
two CPU cores, writes it as a Hugging Face folder, and measures it on held-out questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from axion.demo import MODEL_DIR, evaluate
from axion.demo.train.card import write_card
from axion.demo.train.loop import CORES, train

STEPS = 2000
SEED = 1


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m axion.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="the model's folder")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=STEPS, help="how many steps to train for")
    length.add_argument("--minutes", type=float, help="train for about this long instead")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--eval-only", action="store_true", help="only measure the model in --out")
    parser.add_argument("--per-skill", type=int, default=200, help="questions for each skill")
    parser.add_argument("--show-failures", action="store_true", help="print the wrong answers")
    arguments = parser.parse_args()

    torch.set_num_threads(CORES)
    training = None
    if not arguments.eval_only:
        training = train(arguments.out, arguments.steps, arguments.minutes, arguments.seed)
        print(
            f"{training.steps} steps, {training.minutes:.1f} minutes, loss {training.loss:.4f}, "
            f"saved to {arguments.out}"
        )
    accuracy = evaluate.run(
        evaluate.transformers_generate(arguments.out),
        arguments.per_skill,
        show_failures=arguments.show_failures,
    )
    if training:
        write_card(arguments.out, training, accuracy, arguments.per_skill)


if __name__ == "__main__":
    main()
