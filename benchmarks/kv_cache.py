"""What storing keys and values in a byte a number costs the bundled model: memory and accuracy.

    python benchmarks/kv_cache.py

The right answers to questions that it never saw are scored token by token, and the log
probabilities compared with those by a KV cache of 16-bit numbers.
"""

from __future__ import annotations

import numpy as np

from axion.demo import MODEL_DIR
from axion.demo.evaluate import cases
from axion.llm import LLM
from axion.types import SamplingParams

SCORED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)


def main() -> None:
    """Prints a line for each format."""
    asked = cases(seed=0, per_skill=20)
    reference: dict[str, np.ndarray] = {}
    for kind in ("auto", "fp8", "int8"):
        llm = LLM(str(MODEL_DIR), device="cpu", kv_cache_bytes=2**26, kv_cache_dtype=kind)
        answers: list[float] = []
        questions: list[float] = []
        generations = llm.generate([case.prompt + case.expected for case in asked], SCORED)
        for case, generation in zip(asked, generations, strict=True):
            logprobs = [entry.logprob for entry in generation.prompt_logprobs or []]
            first = len(llm.tokenizer.encode(case.prompt)) - 1
            questions += logprobs[:first]
            answers += logprobs[first:]
        found = {"answers": np.array(answers), "questions": np.array(questions)}
        reference = reference or found
        info = llm.engine.info
        num_bytes = info.kv_cache_bytes / (info.num_blocks * info.block_size)
        off = {name: np.abs(found[name] - reference[name]).mean() for name in found}
        print(
            f"{kind:>4}: {num_bytes:.0f} bytes a token; log probabilities off by "
            f"{off['answers']:.4f} in {len(answers)} tokens of answers, "
            f"{off['questions']:.4f} in {len(questions)} of questions"
        )


if __name__ == "__main__":
    main()
