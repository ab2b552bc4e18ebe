"""Small talk, what Axion is, and saying plainly what so small a model cannot do."""

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
    assistant,
    between_bars,
    draw,
    phrasings,
    says,
    spoken,
    topic,
    user,
)
from axion.demo.words import CITIES, NAMES, WORDS, words_of

ABILITIES = (
    "I can add and subtract, count, spell and reverse words, write JSON, call tools and talk "
    "about Axion."
)
LIMIT = f"I am a very small model: {ABILITIES} I do not know about other things."
ONLY_SMALL_NUMBERS = (
    "I am a very small model: I can only add and subtract numbers from 0 to 99. For more I need a "
    "calculator tool."
)
NO_WEATHER = (
    "I am a very small model: I can only tell you about the weather when I have a weather tool."
)

SMALL_TALK = (
    topic(
        "Hello! How can I help you?",
        """
        Hello | Hello! | Hi | Hi! | Hi there! | Hello there! | Hey | Hey there! | Hey! |
        Greetings! | Hello, model. | Hi, can you help me? | Hello Axion! | Hello, world! |
        Say hello. | Hi Axion | Hello, can you hear me? | Are you there? | Test | Ping |
        Hello, I need some help. | Say hi. | Hello, I have a question.
    """,
        """
        Hey, hello! | Hi, hello there! | Hello, hello! | Hi! I need help. |
        Hey, can you help me? | Hi, are you there? | Hello, I need your help.
    """,
    ),
    topic(
        "Good morning! How can I help you?",
        """
        Good morning | Good morning! | Good morning, Axion. | Morning! | A good morning!
    """,
        """
        Good morning to you! | Hello, good morning!
    """,
    ),
    topic(
        "Good evening! How can I help you?",
        """
        Good evening | Good evening! | Good evening, Axion. | Evening! | A good evening!
    """,
        """
        Good evening to you! | Hello, good evening!
    """,
    ),
    topic(
        "I am well, thank you. How can I help you?",
        """
        How are you? | How are you doing? | How are you today? | Hello, how are you? |
        Hi, how are you? | How do you do? | How is it going? | Are you well? | What's up? |
        How do you feel? | How are things? | Hi! How are you doing? | How's it going?
    """,
        """
        Hello, how are you doing? | Hi, how are you today? | Hey, how are you? |
        How are you doing today? | How do you feel today?
    """,
    ),
    topic(
        "This is a test.",
        """
        Say this is a test | Say this is a test! | Say: this is a test. | Say 'this is a test'
    """,
        """
        Can you say this is a test? | Say "this is a test".
    """,
    ),
    topic(
        "You are welcome!",
        """
        Thank you | Thank you! | Thanks | Thanks! | Thank you very much. | Many thanks! |
        Thanks a lot! | Great, thank you! | That helped, thanks. | Thank you for your help. |
        Good, thanks. | Perfect, thanks! | Thanks for the help! | Nice, thank you.
    """,
        """
        Thanks very much! | Great, thanks! | Thank you a lot! | That helped, thank you. |
        Perfect, thank you!
    """,
    ),
    topic(
        "Goodbye!",
        """
        Bye | Bye! | Goodbye | Goodbye! | Bye bye! | See you! | See you later. | Ciao |
        Good night! | I have to go, bye. | See you tomorrow. | Thanks, bye! | Good bye.
    """,
        """
        Goodbye, see you later. | Bye, see you! | I have to go, goodbye. | Goodbye, good night!
    """,
    ),
    topic(
        "I am the small demo model that comes with Axion.",
        """
        Who are you? | What are you? | What is your name? | Tell me who you are. | Your name? |
        What model are you? | Which model are you? | Which model is this? | Are you a robot? |
        Hello, who are you? | Who am I talking to? | Are you ChatGPT? | Are you an AI? |
        Introduce yourself. | What's your name? | Are you human? | What kind of model are you? |
        Do you have a name? | Tell me about yourself. | Who is this? | What LLM are you?
    """,
        """
        Hi, who are you? | Tell me what you are. | Can you tell me who you are? |
        Tell me your name. | Hello, what is your name? | What model is this?
    """,
    ),
    topic(
        ABILITIES,
        """
        What can you do? | What can you do for me? | What can I ask you? | Help | Help me. |
        How can you help me? | What are you able to do? | What do you know? | Can you help? |
        Tell me what you can do. | What are your skills? | What are you good at? |
        List your skills. | What should I ask you? | What can this model do? |
        What questions can you answer? | What else can you do? | What are your abilities?
    """,
        """
        Hello, what can you do? | Can you tell me what you can do? | Tell me what you know. |
        What can you help me do? | What can I ask you to do? | What are you able to help with?
    """,
    ),
)

MY_NAME_IS = phrasings(
    train="""
        My name is {n}. | I am {n}. | Hello, my name is {n}. | Hi, I am {n}. | Hello, I'm {n}. |
        I'm {n}. | Hi! My name is {n}. | You can call me {n}. | Call me {n}. |
        Hey, I am {n}. | Hey! My name is {n}. | Hello! My name is {n}. | Hi, I'm {n}. |
        Good morning, I am {n}. | Hello there, I am {n}, nice to meet you.
    """,
    held_out="""
        Hello! I am {n}. | Hi, my name is {n}. | Hi! I'm {n}. | Hey, my name is {n}.
    """,
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

WHAT_IS_MY_NAME = phrasings(
    train="""
        What is my name? | Who am I? | Do you know my name? | Tell me my name. | What's my name? |
        Do you remember my name? | What did I say my name was? |
        Do you remember who I am? | Say my name. | Can you remember my name? |
        Could you tell me who I am? | And what is my name? | Now tell me who I am. | Who am I again?
    """,
    held_out="""
        Can you tell me my name? | Do you know who I am? | Can you say my name?
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
        How does Axion serve a model? | What engines does Axion support? | What is MAX? |
        Does Axion have its own engine? | Does Axion use PyTorch? | What is vLLM? |
        How does Axion choose an engine? | Tell me about the engines of Axion.
    """,
        """
        What engine does Axion use? | Which engine does Axion choose? | Can Axion use vLLM? |
        Tell me how Axion serves a model.
    """,
    ),
    topic(
        "Run MODEL_NAME=... python -m axion and the server listens on port 3000.",
        """
        How do I start Axion? | How do I run Axion? | How do I start the server? |
        How can I start Axion? | How do I serve a model? | How do I launch Axion? |
        Which command starts Axion? | How do I choose the model? | Start the server. |
        How do I set the model? | What is MODEL_NAME? | How do I run my own model?
    """,
        """
        How can I run Axion? | How can I start the server? | Tell me how to start Axion. |
        Which command starts the server?
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

SUBJECTS = between_bars(
    """
    quantum physics | black holes | the moon | the sun | gravity | love | life | time | money |
    music | art | history | the Roman Empire | the stock market | bitcoin | the internet |
    machine learning | deep learning | AI | neural networks | transformers | DNA | computers |
    large language models | chemistry | biology | evolution | photosynthesis | the brain |
    climate change | economics | politics | religion | philosophy | football | chess | cooking |
    coffee | dogs | cats | birds | dinosaurs | the ocean | volcanoes | the stars | the universe |
    the big bang | relativity | Linux | Python | Java | Rust | databases | dreams | happiness |
    the French Revolution | world war two | the president | the future | robots | space travel |
    electric cars | a healthy diet | spring | summer | autumn | winter | my cat | my dog |
    my mother | a tree | the sea | a robot | a dragon | friendship
    """
)

COUNTRIES = words_of(
    """
    France Spain Italy Germany Portugal Poland Norway Sweden Finland Denmark Iceland Ireland Greece
    Turkey Egypt Kenya Nigeria Ghana Morocco India China Japan Korea Vietnam Thailand Indonesia
    Australia Canada Mexico Brazil Argentina Chile Peru Colombia Cuba Russia Ukraine Hungary Austria
    Switzerland Belgium England Scotland Wales Israel Iran Iraq Pakistan Nepal America
    """
)

LANGUAGES = words_of("French German Spanish Italian Chinese Japanese Russian Latin Dutch Polish")

OFF_TOPIC = phrasings(
    train="""
        What is the capital of {country}? | What's the capital of {country}? |
        Which city is the capital of {country}? | Where is {country}? | Tell me about {country}. |
        How many people live in {country}? | Who is the president of {country}? |
        Who is the king of {country}? | What language do people speak in {country}? |
        How far is {country} from {city}? | What is the best hotel in {city}? |
        What should I see in {city}? | Tell me about {city}. | Where is {city}? |
        What time is it in {city}? | Plan a trip to {city}. | Write a poem. | Write me a poem. |
        Write a poem about {subject}. | Write a short poem about {subject}. |
        Write a story about {subject}. | Write a short story. | Tell me a story. |
        Tell me a story about {subject}. | Write an essay about {subject}. |
        Write a haiku about {subject}. | Write a song about {subject}. |
        Write a letter to my mother. | Write an email to my boss. | Tell me a joke. |
        Tell me a joke about {subject}. | Do you know a joke? | Make me laugh. |
        Explain {subject}. | Explain {subject} to me. | Explain {subject} in simple words. |
        What is {subject}? | Tell me about {subject}. | What do you think about {subject}? |
        What do you know about {subject}? | How does {subject} work? |
        Why do people like {subject}? | Teach me {subject}. | Give me a fact about {subject}. |
        Give me three ideas about {subject}. | Summarize this text: {words} |
        Summarize the book {word}. | Translate {word} to {language}. |
        Translate {words} into {language}. | How do you say {word} in {language}? |
        What does {word} mean? | What is a {word}? | Define {word}. | What rhymes with {word}? |
        Draw a {word}. | Who was {name}? | Who is {name}? | When was {name} born? |
        How old is {name}? | Write a Python function. |
        Write a Python program that sorts a list. | Write code for {subject}. | Fix my code. |
        Why is the sky blue? | Why is grass green? | What is the meaning of life? |
        What day is it? | What time is it? | What is the date today? | What is the news today? |
        Who won the game? | Who wrote the book {word}? | Give me a recipe for {word}. |
        How do I cook {word}? | What should I eat today? | What is your favorite color? |
        What is your favorite {word}? | Do you like {word}? | Do you like {subject}? |
        Can you feel? | Can you dream? | How old are you? | Where do you live? |
        Where are you from? | Sing a song. | Play a game with me. | Give me some advice. |
        I am sad. | I feel happy today. | I like {subject}. | I love {word}. |
        Let's talk about {subject}. | {words} | {word}
    """,
    held_out="""
        Can you tell me the capital of {country}? | Can you write a poem about {subject}? |
        Can you tell me a joke? | Can you explain {subject}? | Write me a story about {subject}. |
        How many people live in {city}? | What is the best thing about {subject}? |
        Can you translate {word} to {language}? | What language do they speak in {country}? |
        Write a Python function about {subject}. | Give me a recipe. |
        When was {name} president?
    """,
)

NO_CALCULATOR = phrasings(
    train="""
        What is {a} * {b}? | What is {a} times {b}? | {a} * {b} | {a} / {b} |
        Multiply {a} by {b}. | Divide {a} by {b}. | What is {a} divided by {b}? |
        What is {a} / {b}? | Calculate {a} * {b}. | How much is {a} times {b}? |
        What is {big} + {other}? | What is {big} - {other}? | Add {big} and {other}. |
        What is {big} plus {other}? | What is {other} + {big}? | {big} + {other} |
        What is {big} minus {b}? | What is {a} + {big}? | What is the square root of {a}? |
        What is {a} squared?
    """,
    held_out="""
        How much is {a} * {b}? | Can you multiply {a} by {b}? | Calculate {a} / {b}. |
        Calculate {big} + {other}. | How much is {big} minus {other}?
    """,
)

WEATHER_WITHOUT_TOOL = phrasings(
    train="""
        What is the weather in {city}? | How is the weather in {city}? |
        What's the weather like in {city}? | Is it raining in {city}? |
        What is the temperature in {city}? | How warm is it in {city}? |
        Tell me the weather in {city}. | What is the weather today? | Will it rain tomorrow?
    """,
    held_out="""
        What's the weather in {city} today? | How cold is it in {city}? |
        Tell me the temperature in {city}.
    """,
)


def greet(rng: Random, split: Split) -> Exchange:
    """Greetings, thanks, goodbyes, and who it is that speaks."""
    if rng.random() < 0.1:
        name = draw(rng, split, lambda rng: rng.choice(NAMES))
        question = spoken(rng, MY_NAME_IS.pick(rng, split).format(n=name), polite=False)
        answer = f"Nice to meet you, {name}!"
        return Exchange([user(question)], assistant(answer), says(answer))
    return about_topic(rng, split, SMALL_TALK, polite=False)


def about(rng: Random, split: Split) -> Exchange:
    """What Axion is and how each of its endpoints is called."""
    return about_topic(rng, split, ABOUT_AXION)


def limits(rng: Random, split: Split) -> Exchange:
    """Says what it can do instead of making up an answer that it does not know."""
    kind = rng.random()
    if kind < 0.15:
        return no_calculator(rng, split)
    if kind < 0.25:
        return no_weather(rng, split)
    question = OFF_TOPIC.pick(rng, split).format(
        subject=rng.choice(SUBJECTS),
        country=rng.choice(COUNTRIES),
        language=rng.choice(LANGUAGES),
        city=draw(rng, split, lambda rng: rng.choice(CITIES)),
        name=draw(rng, split, lambda rng: rng.choice(NAMES)),
        word=draw(rng, split, lambda rng: rng.choice(WORDS)),
        words=" ".join(rng.choices(WORDS, k=rng.randint(2, 6))),
    )
    return Exchange([user(spoken(rng, question))], assistant(LIMIT), says(LIMIT))


def no_calculator(rng: Random, split: Split) -> Exchange:
    """A sum that the model cannot do by itself."""
    question = NO_CALCULATOR.pick(rng, split).format(
        a=rng.randint(2, 99),
        b=rng.randint(2, 99),
        big=rng.randint(100, 9999),
        other=rng.randint(10, 9999),
    )
    return Exchange(
        [user(spoken(rng, question))], assistant(ONLY_SMALL_NUMBERS), says(ONLY_SMALL_NUMBERS)
    )


def no_weather(rng: Random, split: Split) -> Exchange:
    """A question about the weather that only a tool could answer."""
    city = draw(rng, split, lambda rng: rng.choice(CITIES))
    question = WEATHER_WITHOUT_TOOL.pick(rng, split).format(city=city)
    return Exchange([user(spoken(rng, question))], assistant(NO_WEATHER), says(NO_WEATHER))
