"""`axion chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from axion.cli.errors import show_error
from axion.cli.options import (
    ApiKey,
    MaxTokens,
    ModelName,
    Seed,
    System,
    Temperature,
    TopP,
    Url,
    chat_messages,
    open_model,
    request_body,
)
from axion.cli.session import Answer, Model, terminal_safe
from axion.errors import AxionError, InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console

HELP = """\
/reset   begin a new conversation
/help    show this
/exit    leave; so does Ctrl-D
Ctrl-C   stop the answer; twice leaves"""


def chat(
    model: ModelName = None,
    system: System = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Talk to a model in the terminal; from a pipe, each line is one turn."""
    from rich.console import Console

    with open_model(model, url, api_key) as opened:
        if not opened.has_chat_template:
            raise InvalidRequestError(
                f"{opened.name} has no chat template, so it cannot hold a conversation. "
                "`axion generate --raw` continues a text with it."
            )
        options = {
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        conversation = Conversation(opened, system, options)
        console = Console(highlight=False)
        if sys.stdin.isatty():
            _talk(conversation, console)
        else:
            for line in sys.stdin:
                if not _turn(conversation, line.strip(), console):
                    break


class Conversation:
    """The messages so far, and the model that answers them."""

    def __init__(self, model: Model, system: str | None, options: dict[str, Any]) -> None:
        self.model = model
        self._system = system
        self._options = options
        self.messages = chat_messages(system)

    def reset(self) -> None:
        self.messages = chat_messages(self._system)

    def say(self, text: str, console: Console) -> None:
        """Print the answer to `text` as it comes.

        What was said before an interrupt or an error is kept; without any, the turn is undone.
        """
        self.messages.append({"role": "user", "content": text})
        body = request_body(self.model, messages=self.messages, **self._options)
        answer = Answer()
        try:
            with closing(self.model.stream("chat/completions", body)) as chunks:
                answer.read(chunks, lambda piece: console.out(terminal_safe(piece), end=""))
        finally:
            if answer.text:
                console.out()
                self.messages.append({"role": "assistant", "content": answer.text})
            else:
                self.messages.pop()


def _talk(conversation: Conversation, console: Console) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  line editing and history in input()

    console.print(f"{conversation.model.name}. /help shows the commands.", style="dim")
    interrupted = False
    while True:
        try:
            line = input(">>> ").strip()
            interrupted = False
            if not _turn(conversation, line, console):
                return
        except KeyboardInterrupt:
            console.print()
            if interrupted:
                return
            interrupted = True
            console.print("Ctrl-C again or Ctrl-D leaves.", style="dim")
        except EOFError:
            console.print()
            return
        except AxionError as error:
            show_error(error.message)


def _turn(conversation: Conversation, line: str, console: Console) -> bool:
    """Do what one line asks for; False when it asks to leave."""
    match line:
        case "":
            pass
        case "/exit" | "/quit":
            return False
        case "/help":
            console.print(HELP, style="dim")
        case "/reset":
            conversation.reset()
            console.print("A new conversation.", style="dim")
        case _ if line.startswith("/") and line[1:].isalpha():
            console.print(f"There is no command {line}. /help shows them.", style="dim")
        case _:
            conversation.say(line, console)
    return True
