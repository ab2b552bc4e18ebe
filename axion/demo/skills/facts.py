"""What Axion is and how each of its endpoints is called."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from random import Random

from axion.demo.skills.base import (
    Exchange,
    Phrasings,
    Split,
    Topic,
    about_topic,
    phrasings,
    topic,
)

ENDPOINT_FRAMES = phrasings(
    train="""
        How do I call {}? | How do I use {}? | How can I call {}? | What is {}? |
        Tell me about {}. | Where is {}? | Explain {}. | What does {} do? | What is {} for? |
        Show me how to call {}. | What is the path of {}? | {}?
    """,
    held_out="""
        Tell me how to call {}. | How can I use {}? | Explain how to use {}.
    """,
)


def _endpoint(answer: str, nouns: tuple[str, ...], train: str, held_out: str) -> Topic:
    """A topic whose questions are the given ones and frames around each noun."""
    own = phrasings(train, held_out)
    return Topic(
        answer,
        Phrasings(
            (*_framed(ENDPOINT_FRAMES.train, nouns), *own.train, *own.train),
            (*_framed(ENDPOINT_FRAMES.held_out, nouns), *own.held_out),
        ),
    )


def _framed(frames: Iterable[str], nouns: Iterable[str]) -> list[str]:
    return [frame.format(noun) for frame, noun in product(frames, nouns)]


_ENDPOINTS = (
    _endpoint(
        "Send POST /v1/chat/completions with a model and a list of messages to chat.",
        ("/v1/chat/completions", "the chat endpoint", "the chat completions endpoint"),
        """
        How do I chat with a model? | How do I send messages? | Which endpoint is for chat? |
        How can I send a chat request? | How do I chat? | What is the endpoint for chat? |
        Which endpoint do I use to chat? | How do I send a message to a model?
        """,
        """
        How can I chat with a model? | Which endpoint do I call to chat?
        """,
    ),
    _endpoint(
        "Send POST /v1/completions with a model and a prompt to continue a text.",
        ("/v1/completions", "the completions endpoint", "the text completions endpoint"),
        """
        How do I complete a text? | How do I send a prompt? | How do I continue a text? |
        Which endpoint is for completions? | How can I complete a prompt? |
        Which endpoint do I use to complete a text? | Which endpoint continues a text?
        """,
        """
        How can I continue a text? | How do I complete a prompt?
        """,
    ),
    _endpoint(
        "Send GET /v1/models to list the models.",
        ("/v1/models", "the models endpoint", "the model list"),
        """
        How do I list the models? | Which models are there? | What models can I use? |
        How do I see the models? | Which endpoint is for models? | List the models. |
        Which endpoint lists the models? | How can I see which models there are?
        """,
        """
        How can I list the models? | How do I see which models I can use?
        """,
    ),
    _endpoint(
        "Send GET /health to see if the server is up.",
        ("/health", "the health endpoint", "the health check"),
        """
        How do I check the health? | Is the server up? | How do I see if the server is up? |
        Which endpoint is for health? | How do I check the server? | Is the server healthy? |
        How do I know that the server is up? | Which endpoint checks the health?
        """,
        """
        How do I check that the server is up? | How can I check the health?
        """,
    ),
    _endpoint(
        "Send GET /metrics to get the metrics in the Prometheus format.",
        ("/metrics", "the metrics endpoint", "the Prometheus endpoint"),
        """
        How do I get the metrics? | Where are the metrics? | How do I see the metrics? |
        Which endpoint is for metrics? | Does Axion have metrics? | How do I use Prometheus? |
        Which endpoint has the metrics? | How can I see the metrics?
        """,
        """
        How can I get the metrics? | Which endpoint do I call for metrics?
        """,
    ),
    _endpoint(
        "Send GET /version to get the version of Axion.",
        ("/version", "the version endpoint"),
        """
        Which version is this? | What version is running? | How do I get the version? |
        Which endpoint is for the version? | How do I see the version? | Your version? |
        Which version of Axion is this? | How can I see the version?
        """,
        """
        How can I get the version? | How do I see which version is running?
        """,
    ),
    _endpoint(
        "Send POST /v1/embeddings with a model and an input to get embeddings.",
        ("/v1/embeddings", "the embeddings endpoint", "embeddings"),
        """
        How do I get embeddings? | How do I embed a text? | Which endpoint is for embeddings? |
        Which endpoint embeds a text? | How can I embed a text?
        """,
        """
        How can I get embeddings? | How do I get the embeddings of a text?
        """,
    ),
    _endpoint(
        "Send POST /v1/rerank with a model, a query and documents to rank the documents.",
        ("/v1/rerank", "the rerank endpoint", "reranking"),
        """
        How do I rerank documents? | How do I rank documents? | Which endpoint is for rerank? |
        Which endpoint ranks documents? | How can I rank documents for a query?
        """,
        """
        How can I rerank documents? | How do I rank documents for a query?
        """,
    ),
)

ABOUT_AXION = (
    *_ENDPOINTS,
    topic(
        "Axion is one OpenAI-compatible server in front of every model a team runs.",
        """
        What is Axion? | Tell me about Axion. | Explain Axion. | What does Axion do? | Axion? |
        What is this server? | Describe Axion. | What is Axion for? | Who is Axion? |
        Can you explain Axion? | What kind of server is Axion? | Why should I use Axion? |
        What is this? | Do you know Axion? | What do you know about Axion?
        """,
        """
        Can you tell me about Axion? | Tell me what Axion is. | Explain what Axion does. |
        Hello, what is Axion? | Can you describe Axion?
        """,
    ),
    topic(
        "Axion sends a model to MAX or vLLM when one is installed and supports it, and otherwise "
        "serves it with its own PyTorch engine.",
        """
        Which engine does Axion use? | Which engines does Axion have? | Does Axion use vLLM? |
        Does Axion use MAX? | How does Axion run a model? | What engine is used? |
        How does Axion serve a model? | Tell me how Axion runs a model. |
        What engines does Axion support? | What is MAX? | Does Axion have its own engine? |
        Does Axion use PyTorch? | What is vLLM? | How does Axion choose an engine? |
        Tell me about the engines of Axion.
        """,
        """
        What engine does Axion use? | Which engine does Axion choose? | Can Axion use vLLM? |
        Tell me how Axion serves a model.
        """,
    ),
    topic(
        "Run MODEL_NAME=... python -m axion and the server listens on port 3000.",
        """
        How do I start Axion? | How do I install Axion? | How do I get Axion? |
        How do I run Axion? | How do I start the server? | How can I start Axion? |
        How do I serve a model? | How do I launch Axion? | Which command starts Axion? |
        How do I choose the model? | Start the server. | How do I set the model? |
        What is MODEL_NAME? | How do I run my own model?
        """,
        """
        How can I run Axion? | How can I start the server? | Tell me how to start Axion. |
        Which command starts the server?
        """,
    ),
    topic(
        "Axion is free software under the Apache 2.0 license.",
        """
        Is Axion free? | What is the license of Axion? | Is Axion open source? | Which license? |
        What does Axion cost? | How much does Axion cost? | What license does Axion have? |
        Can I use Axion at work? | Where is the license?
        """,
        """
        Which license does Axion have? | Is Axion free to use? | Is Axion free software?
        """,
    ),
    topic(
        "Axion listens on port 3000, so the base URL is http://localhost:3000/v1.",
        """
        Which port does Axion use? | What is the port? | What is the base URL? | What port? |
        Which port does the server listen on? | What is the URL of Axion? | Where is Axion? |
        Which base URL do I use? | What is the address of the server? | base_url? |
        Where does Axion listen? | On which port is Axion? | What is the base_url?
        """,
        """
        Which port does Axion listen on? | What is the base URL of Axion? |
        What is the URL of the server? | On which port is the server?
        """,
    ),
    topic(
        'Use client = OpenAI(base_url="http://localhost:3000/v1", api_key="none").',
        """
        How do I use the Python client? | How do I use the OpenAI client? | Show me the client. |
        How do I use Axion from Python? | How do I connect with the OpenAI client? |
        How do I call Axion from Python? | How do I make a client? | Show me some Python. |
        Can I use the OpenAI client? | How do I use the openai library? | Which client? |
        How do I connect to Axion? | How can I use the openai package? | Python client?
        """,
        """
        How can I use the OpenAI client? | How can I call Axion from Python? |
        Show me the Python client. | How do I connect from Python?
        """,
    ),
    topic(
        "Axion has POST /v1/chat/completions, POST /v1/completions, POST /v1/embeddings, "
        "POST /v1/rerank, GET /v1/models, GET /health, GET /metrics and GET /version.",
        """
        Which endpoints are there? | List the endpoints. | What endpoints does Axion have? |
        Which endpoints does Axion have? | Show me all endpoints. | What are the endpoints? |
        Tell me the endpoints. | What can I call? | Show me the API. | What is the API? |
        Which endpoints can I call? | List all endpoints of Axion. | What endpoints exist?
        """,
        """
        What endpoints are there? | Tell me all endpoints. | Show me the endpoints of Axion. |
        Which endpoints can I use?
        """,
    ),
    topic(
        "Set stream=True in the request and the answer comes token by token.",
        """
        How do I stream? | How do I stream an answer? | Can Axion stream? | What is streaming? |
        How can I stream the answer? | How do I get the answer token by token? |
        Does Axion support streaming? | Does Axion stream? | How do I stream a response? |
        How do I turn on streaming? | Is streaming supported?
        """,
        """
        How can I stream? | Can I stream the answer? | How can I get an answer token by token?
        """,
    ),
)


def about(rng: Random, split: Split) -> Exchange:
    """What Axion is and how each of its endpoints is called."""
    return about_topic(rng, split, ABOUT_AXION)
