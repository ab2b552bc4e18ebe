"""Measures the demo model on questions that its training never saw.

An engine is anything that continues texts: `evaluate` hands it prompts that the chat template has
already written and checks what comes back, so the same cases measure transformers, Axion's own
engine, or a server.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from axion.demo import MODEL_DIR
from axion.demo.chat import END_OF_TURN, render
from axion.demo.grammar import SKILLS, held_out_case
from axion.demo.skills.base import Check, Message, Tool, says, user
from axion.demo.words import SPEECH

PASS_MARK = 0.9
MAX_NEW_TOKENS = 160
_KV_CACHE_BYTES = 256 * 2**20

Generate = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class Case:
    """One test question.

    Attributes:
        skill: The skill it tests.
        messages: The conversation so far, in OpenAI's format.
        expected: One right answer, for people to read.
        check: Says whether an answer's text is right.
        tools: The tools that the request offers.
    """

    skill: str
    messages: list[Message]
    expected: str
    check: Check
    tools: list[Tool] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        """The case as the model reads it."""
        return render(self.messages, self.tools, add_generation_prompt=True)


@dataclass(frozen=True)
class Failure:
    """A wrong answer."""

    case: Case
    answer: str


def cases(seed: int = 0, per_skill: int = 100) -> list[Case]:
    """Test questions, the same number of different ones for each skill."""
    made = []
    for skill in SKILLS:
        rng = Random(f"{skill} {seed}")
        prompts: set[str] = set()
        while len(prompts) < per_skill:
            exchange = held_out_case(rng, skill)
            expected = answer_text(exchange.answer)
            case = Case(skill, exchange.messages, expected, exchange.check, exchange.tools)
            if case.prompt not in prompts:
                prompts.add(case.prompt)
                made.append(case)
    return made


def own_word_cases() -> list[Case]:
    """Spelling and reversing the words of the grammar's own sentences.

    Training shows every one of them, so they are no test of a rule. But most are single tokens,
    whose letters the model can only know by heart, and people do ask for them.
    """
    made = []
    for word in SPEECH:
        for skill, verb, answer in (
            ("spell", "Spell", "-".join(word)),
            ("reverse", "Reverse", word[::-1]),
        ):
            messages = [user(f"{verb} the word {word}.")]
            made.append(Case(f"{skill}, own words", messages, answer, says(answer)))
    return made


def answer_text(answer: Message) -> str:
    """An assistant message as the model writes it."""
    text = render([answer])
    return text.removeprefix("<|im_start|>assistant\n").removesuffix(f"{END_OF_TURN}\n")


def evaluate(generate: Generate, cases: Sequence[Case]) -> dict[str, float]:
    """The share of right answers per skill.

    Args:
        generate: Continues each prompt, a whole text in the model's chat format, greedily and up
            to `<|im_end|>`. The returned texts keep `<tool_call>` and `</tool_call>`.
        cases: What to ask.
    """
    accuracy, _ = evaluate_with_failures(generate, cases)
    return accuracy


def evaluate_with_failures(
    generate: Generate, cases: Sequence[Case]
) -> tuple[dict[str, float], list[Failure]]:
    """The share of right answers per skill, and every wrong answer."""
    right: dict[str, list[bool]] = {}
    failures = []
    for case, text in zip(cases, generate([case.prompt for case in cases]), strict=True):
        answer = text.split(END_OF_TURN)[0].strip()
        passed = case.check(answer)
        right.setdefault(case.skill, []).append(passed)
        if not passed:
            failures.append(Failure(case, answer))
    return {skill: sum(marks) / len(marks) for skill, marks in right.items()}, failures


def transformers_generate(folder: Path = MODEL_DIR, batch_size: int = 50) -> Generate:
    """Greedy decoding by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def generate(prompts: Sequence[str]) -> list[str]:
        answers = [""] * len(prompts)
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(prompts), batch_size):
            chosen = by_length[start : start + batch_size]
            inputs = tokenizer(
                [prompts[index] for index in chosen], padding=True, return_tensors="pt"
            )
            outputs = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
            texts = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :])
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
        return answers

    return generate


def engine_generate(folder: Path = MODEL_DIR, **options: Any) -> Generate:
    """Greedy decoding by Axion's own engine.

    Args:
        options: as `axion.llm.LLM` takes them.
    """
    from axion.llm import LLM
    from axion.types import SamplingParams

    llm = LLM(str(folder), max_num_seqs=50, kv_cache_bytes=_KV_CACHE_BYTES, **options)
    params = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)

    def generate(prompts: Sequence[str]) -> list[str]:
        token_ids: list[Any] = [llm.tokenizer.encode(prompt) for prompt in prompts]
        return [answer.text for answer in llm.generate(token_ids, params)]

    return generate


def print_report(
    accuracy: dict[str, float], failures: Sequence[Failure], show_failures: bool = False
) -> None:
    """Prints a table of the accuracies and, if asked for, the wrong answers."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("skill", "right", "", title="Accuracy")
    for skill, share in accuracy.items():
        mark = "[green]pass[/]" if share >= PASS_MARK else f"[red]below {PASS_MARK:.0%}[/]"
        table.add_row(skill, f"{share:.1%}", mark)
    console.print(table)
    for failure in failures if show_failures else ():
        console.rule(failure.case.skill)
        console.print(failure.case.prompt, markup=False, highlight=False)
        console.print(f"expected: {failure.case.expected!r}", markup=False)
        console.print(f"answered: {failure.answer!r}", markup=False)


def run(
    generate: Generate, per_skill: int, seed: int = 0, show_failures: bool = False
) -> dict[str, float]:
    """Evaluates a model and prints the report.

    Returns:
        The accuracy per skill on held-out questions, and that on the model's own words.
    """
    asked = [*cases(seed, per_skill), *own_word_cases()]
    accuracy, failures = evaluate_with_failures(generate, asked)
    print_report(accuracy, failures, show_failures)
    return accuracy


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m axion.demo.evaluate", description=__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL_DIR,
        help="the model's folder, or a GGUF file, which Axion's own engine measures",
    )
    parser.add_argument("--per-skill", type=int, default=100, help="questions for each skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show-failures", action="store_true", help="print the wrong answers")
    parser.add_argument(
        "--quantization",
        choices=("none", "int8", "int4", "fp8"),
        help="measure by Axion's own engine, with weights of this kind, not by transformers",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "fp8", "int8"),
        help="measure by Axion's own engine, with keys and values stored so",
    )
    arguments = parser.parse_args()
    by_engine = arguments.quantization or arguments.kv_cache_dtype
    generate = (
        transformers_generate(arguments.model)
        if by_engine is None and arguments.model.suffix != ".gguf"
        else engine_generate(
            arguments.model,
            quantization=arguments.quantization or "none",
            kv_cache_dtype=arguments.kv_cache_dtype or "auto",
        )
    )
    run(generate, arguments.per_skill, arguments.seed, arguments.show_failures)


if __name__ == "__main__":
    main()
